"""SenseVoiceSmall against numbers of the published code, and its loading.

The numbers come from VITA-MLLM/VITA-Audio at 0abaf17e333e8239952a183cd0d5e3777b9a9784,
vita_audio/models/qwen2_mtp_sensevoice_v4_48_3/modeling_sensevoice.py (SenseVoiceSmall.inference_encode with language
"auto" and use_itn False, in evaluation mode), fed by modelscope/FunASR at 3c58cb56a56598232c3efffa15d313d7e82a4307,
funasr/frontends/wav_frontend.py (WavFrontend with the options of SenseVoiceSmall's config.yaml, dither 0), both on a
CPU with torch 2.11. The weights, the wave and am.mvn are this folder's formulas.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from formula_weights import speechlike
from safetensors.torch import save_file
from sensevoice_folder import SMALL, write_cmvn, write_funasr

from wavalign_ext.speech.encoders import load_encoder, sanm
from wavalign_ext.speech.encoders.fbank import fbank, read_cmvn, stack_frames
from wavalign_ext.speech.encoders.sensevoice import SenseVoiceSmall

PUBLISHED = sanm.Shape(input=560, size=512, feed_forward=2048, kernel=11, blocks=50, last_blocks=20)

# fmt: off
FEATURES = [  # of 1 s, every 5th of 17 rows and every 100th of 560 columns
    -0.95375, 0.29002, 0.8061, 0.87857, -0.49307, 0.51578, 0.41958, 1.38414, 1.38152, 0.894, 0.23326, 1.53294,
    -0.48791, 1.11117, 1.10544, 0.84221, -0.03379, 1.4956, -0.3245, 0.69686, 0.98567, 0.75989, -0.56689, 0.34355,
]
SMALL_OUT = [  # of 1 s, every 5th of 21 rows and every 4th of 32 columns
    -2.3031, -1.25583, 0.78879, 0.82626, 1.1027, -0.00514, 0.92963, 1.43726, -0.66608, -0.15245, -1.51622, 0.62431,
    1.46728, 1.57581, 1.4863, 1.1933, -1.89878, -1.30255, -0.22492, 1.10194, 0.8114, 0.77333, -0.78262, 0.48562,
    -1.96476, -0.46594, -0.77852, 0.81762, 1.27134, 0.25958, 0.75753, 0.95601, -1.13679, -0.028, -1.21847, 0.20594,
    1.81594, 1.44897, 1.10882, 1.707,
]
PUBLISHED_OUT = [  # of 1 s, every 5th of 21 rows and every 64th of 512 columns
    0.53774, 0.69305, 0.72287, 1.27969, -0.19236, -0.6524, -0.16347, 0.84142, 0.59799, 1.15017, 0.1374, 1.47668,
    0.82277, -0.32771, 0.4094, 1.62489, 0.31226, 1.43938, -0.38145, 1.44874, -0.02662, -1.25519, 0.32369, 1.64291,
    0.46881, 0.41327, -0.39443, 0.93024, 0.25426, -0.9513, 0.88569, 0.5388, 0.71897, 0.79985, -0.30708, 0.36522,
    0.30684, -2.14304, 0.82006, 1.72844,
]
SMALL_OUT_BF16 = [  # of 25 s, every 45th row from row 280 and every 4th of 32 columns
    1.14062, 0.51953, -0.76953, -0.1416, -0.27539, 0.1582, 0.92969, -2.10938, 1.52344, -0.19043, 0.84375, -0.06396,
    0.2002, -0.71094, -0.03784, -0.98047, 0.33398, -0.61719, 0.01105, 0.17676, -0.85156, 0.39453, -0.04321, -0.52734,
    0.49414, 0.81641, -0.38086, 0.60938, -0.84375, 0.39453, 0.89062, 0.14062,
]
# fmt: on


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sensevoice")
    write_funasr(folder, SMALL)
    return folder


# --- the published numbers ------------------------------------------------------------------------------------------


def test_features_are_funasrs(small: Path) -> None:
    shift, scale = read_cmvn(small / "am.mvn")
    features = (stack_frames(fbank(torch.from_numpy(speechlike(1.0)))) + shift) * scale
    assert features.shape == (17, 560)
    np.testing.assert_allclose(features[::5, ::100].flatten(), FEATURES, atol=1e-4, rtol=0)


def test_what_is_heard_is_what_vitas_code_hears(small: Path) -> None:
    heard = load_encoder({"type": "sensevoice", "path": small}).encode(speechlike(1.0))
    assert heard.shape == (21, 32) and heard.dtype == torch.float32
    np.testing.assert_allclose(heard[::5, ::4].flatten(), SMALL_OUT, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_what_is_heard_at_the_published_size_is_what_vitas_code_hears(tmp_path: Path) -> None:
    tensors = write_funasr(tmp_path, PUBLISHED)
    assert sum(value.numel() for value in tensors.values()) == 221_145_952
    heard = load_encoder({"type": "sensevoice", "path": tmp_path}).encode(speechlike(1.0))
    np.testing.assert_allclose(heard[::5, ::64].flatten(), PUBLISHED_OUT, atol=1e-4, rtol=0)


def test_bfloat16_rounds_as_vitas_code_does(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder({"type": "sensevoice", "path": small, "dtype": "bfloat16"})

    def off() -> float:
        heard = encoder.encode(speechlike(25.0))
        assert heard.shape == (421, 32) and heard.dtype == torch.bfloat16
        return np.abs(heard[280::45, ::4].float().flatten().numpy() - SMALL_OUT_BF16).mean()

    assert off() < 0.015  # 0 where the numbers were made; another CPU sums in another order
    rounded = sanm.positions
    monkeypatch.setattr(sanm, "positions", lambda length, size, like: rounded(length, size, like.float()).to(like))
    assert off() > 0.025  # 0.038: what rounding the positions changes


def test_position_encodings_are_rounded_in_bfloat16() -> None:
    """Values of the published SinusoidalPositionEncoder: positions 256 and 257 are one, 258 is another."""
    found = sanm.positions(300, 8, torch.zeros(1, dtype=torch.bfloat16))[[0, 255, 256, 257, 299], :4]
    assert found.tolist() == [
        [0.83984375, 0.046875, 0.0021820068359375, 0.00010251998901367188],
        [-1.0, -0.53515625, 0.53125, 0.0262451171875],
        [-1.0, -0.53515625, 0.53125, 0.0262451171875],
        [0.37890625, -0.427734375, 0.53515625, 0.0264892578125],
        [-1.0, 0.99609375, 0.609375, 0.03076171875],
    ]


def test_norms_have_vitas_epsilon_and_are_computed_in_float32() -> None:
    norm = sanm.Norm(2).bfloat16()
    tiny = torch.tensor([[2e-3, 0.0]], dtype=torch.bfloat16)  # variance 1e-6
    expected = 1e-3 / (1e-6 + 1e-5) ** 0.5
    torch.testing.assert_close(norm(tiny).float(), torch.tensor([[expected, -expected]]), atol=2e-3, rtol=0)


# --- frames and determinism -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "frames"), [(400, 5), (1359, 5), (1360, 6), (16000, 21), (160000, 171), (480000, 504)]
)
def test_frames_are_known_without_running(small: Path, samples: int, frames: int) -> None:
    encoder = SenseVoiceSmall(small)
    assert encoder.frames(samples) == frames  # 171 for 10 s: what VITA's prompts have
    if samples <= 16000:
        assert encoder.encode(speechlike(1.0)[:samples]).shape == (frames, 32)


def test_a_recording_shorter_than_a_window_or_longer_than_30_s_is_refused(small: Path) -> None:
    encoder = SenseVoiceSmall(small)
    for samples, kind in ((399, "short"), (480001, "long")):
        with pytest.raises(ValueError, match=f"too {kind}: 0.025 to 30 s are allowed"):
            encoder.frames(samples)


def test_silence_and_quiet_recordings_give_the_same_features_each_time(small: Path) -> None:
    encoder = SenseVoiceSmall(small)
    quiet = 1e-6 * speechlike(1.0)
    assert torch.equal(encoder.encode(quiet), encoder.encode(quiet))
    assert encoder.encode(np.zeros(16000)).isfinite().all()
    assert (encoder.encode(speechlike(1.0)) - encoder.encode(speechlike(1.0)[::-1])).abs().max() > 0.1


@pytest.mark.parametrize("frames", [1, 2, 6, 7, 13])
def test_rows_hold_seven_frames_around_every_sixth(frames: int) -> None:
    rows = stack_frames(torch.arange(frames)[:, None].float())
    expected = [[min(max(6 * row + offset, 0), frames - 1) for offset in range(-3, 4)] for row in range(len(rows))]
    assert rows.tolist() == expected and len(rows) == -(-frames // 6)


# --- folders --------------------------------------------------------------------------------------------------------


def test_vitas_checkpoint_holds_the_same_encoder(small: Path, tmp_path: Path) -> None:
    tensors = torch.load(small / "model.pt")
    renamed = {f"model.audio_model.model.{name}": value.contiguous() for name, value in tensors.items()}
    names = sorted(renamed)
    parts = {"a": names[::2], "b": names[1::2], "c": ["model.embed_tokens.weight"]}
    for file, part in parts.items():
        save_file({name: renamed.get(name, torch.zeros(2)) for name in part}, tmp_path / f"{file}.safetensors")
    where = {name: f"{file}.safetensors" for file, part in parts.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (tmp_path / "c.safetensors").write_bytes(b"")  # a shard without the encoder is not read
    write_cmvn(tmp_path / "am.mvn")
    vita, funasr = SenseVoiceSmall(tmp_path), SenseVoiceSmall(small)
    assert torch.equal(vita.encode(speechlike(0.5)), funasr.encode(speechlike(0.5)))
    assert vita.fingerprint() == funasr.fingerprint() != SenseVoiceSmall(small, dtype="bfloat16").fingerprint()
    (tmp_path / "a.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="a.safetensors cannot be read: .*; copy it again"):
        SenseVoiceSmall(tmp_path)


def test_another_am_mvn_is_another_encoder(small: Path, tmp_path: Path) -> None:
    write_funasr(tmp_path, SMALL)
    (tmp_path / "am.mvn").write_text((small / "am.mvn").read_text().replace("[ -", "[ -1"))
    assert SenseVoiceSmall(tmp_path).fingerprint() != SenseVoiceSmall(small).fingerprint()


def test_weights_in_a_trainers_wrapping_are_found(small: Path, tmp_path: Path) -> None:
    write_funasr(tmp_path, SMALL)
    torch.save({"state_dict": torch.load(small / "model.pt"), "epoch": 3}, tmp_path / "model.pt")
    assert SenseVoiceSmall(tmp_path).fingerprint() == SenseVoiceSmall(small).fingerprint()


def test_a_config_that_says_otherwise_is_refused(tmp_path: Path) -> None:
    write_funasr(tmp_path, SMALL)
    config = tmp_path / "config.yaml"
    config.write_text("encoder_conf: {attention_heads: 4}\nfrontend_conf: {fs: 16000, lfr_m: 7, cmvn_file: null}\n")
    SenseVoiceSmall(tmp_path)
    config.write_text("frontend_conf: {window: hann}\n")
    with pytest.raises(ValueError, match="frontend_conf.window: 'hann': the encoder 'sensevoice' has 'hamming'"):
        SenseVoiceSmall(tmp_path)


def test_a_folder_that_is_not_whole_is_refused_in_one_line(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as raised:
            SenseVoiceSmall(tmp_path)
        assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)

    refused("has no am.mvn: copy it there from FunAudioLLM/SenseVoiceSmall")
    tensors = write_funasr(tmp_path, SMALL)
    (tmp_path / "am.mvn").write_text("<Nnet>\n")
    refused("has no numbers after <AddShift>: copy am.mvn")
    write_cmvn(tmp_path / "am.mvn", 80)
    refused("has 80 and 80 numbers, not 560")
    write_cmvn(tmp_path / "am.mvn")
    (tmp_path / "model.pt").write_bytes(b"cut off")
    refused("model.pt cannot be read")
    (tmp_path / "model.pt").unlink()
    refused("has no model.safetensors: give the folder of the published checkpoint")
    torch.save({"decoder.weight": torch.zeros(1)}, tmp_path / "model.pt")
    refused("has no tensor 'encoder.encoders0.0.feed_forward.w_2.weight': give the folder of SenseVoiceSmall or VITA")
    del tensors["encoder.tp_encoders.1.norm2.bias"]
    torch.save(tensors, tmp_path / "model.pt")
    refused("1 tensors are missing in the file")
    write_funasr(tmp_path, SMALL, **{"decoder.weight": torch.zeros(1)})
    refused(r"1 tensors of the file are not the model.s \(decoder.weight\)")
