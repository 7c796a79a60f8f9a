"""Codecs beyond the fitted ones: streams of several codebooks, Codec 2, transformers' codecs, GLM-4-Voice's."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    HubertConfig,
    MimiConfig,
    MimiModel,
    Qwen2Config,
    XcodecConfig,
    XcodecModel,
)

from wavalign_ext.speech.codecs import codec2, load_codec
from wavalign_ext.speech.codecs.codebook_stream import CodeStreams


def buzz(seconds: float, rate: int) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * 140 * n * t) / n for n in range(1, 8))
    return (0.2 * wave).astype(np.float32)


# --- several codebooks as one stream --------------------------------------------------------------------------------


def test_a_stream_is_its_frames_and_back() -> None:
    streams = CodeStreams([512, 512, 1024])
    frames = np.random.default_rng(0).integers(0, [512, 512, 1024], size=(50, 3))
    codes = streams.join(frames)
    assert streams.size == 2048 and len(codes) == 150
    assert codes[:3] == [frames[0, 0], 512 + frames[0, 1], 1024 + frames[0, 2]]
    np.testing.assert_array_equal(streams.split(codes), frames)


def test_a_wrong_code_costs_one_frame() -> None:
    streams = CodeStreams([4, 4])
    codes = streams.join([[0, 1], [2, 3], [1, 0]])
    assert streams.split([*codes[:2], *codes[3:]]).tolist() == [[0, 1], [1, 0]]  # a lost first code
    assert streams.split([*codes[:3], *codes[4:]]).tolist() == [[0, 1], [1, 0]]  # a lost second code
    assert streams.split([5, *codes, 2]).tolist() == [[0, 1], [2, 3], [1, 0]]  # codes around whole frames
    assert streams.split([]).shape == (0, 2)
    with pytest.raises(ValueError, match="code 8 is out of range.*0 to 7"):
        streams.split([8])


# --- Codec 2 --------------------------------------------------------------------------------------------------------


def test_numbers_of_nine_nine_and_ten_bits_are_packed_and_unpacked() -> None:
    numbers = [0b101010101, 0b000000011, 0b1111100000]
    assert codec2._packed(numbers, (9, 9, 10)) == bytes([0b10101010, 0b10000000, 0b11111110, 0b00000000])
    assert codec2._numbers(codec2._packed(numbers, (9, 9, 10)), (9, 9, 10)) == numbers


def test_codec2_keeps_tokens_and_the_length() -> None:
    pycodec2 = pytest.importorskip("pycodec2", reason="the optional package pycodec2 is not installed")
    codec = load_codec({"type": "codec2"})
    codes = codec.encode(buzz(2.0, codec.sample_rate))
    assert (codec.codebook_size, codec.frame_rate, len(codes)) == (2048, 75, 150)
    assert codes == codec.encode(buzz(2.0, codec.sample_rate))
    # Through the package's own bytes and back: no bit is lost.
    coder = pycodec2.Codec2(700)
    samples = (buzz(2.0, 8000) * 32767).astype(np.int16).reshape(-1, 320)
    packed = [coder.encode(frame) for frame in samples]
    assert isinstance(codec, codec2.Codec2)
    assert [codec2._packed(frame, (9, 9, 10)) for frame in codec.streams.split(codes)] == packed
    wave = codec.decode(codes)
    assert len(wave) == 16000 and wave.dtype == np.float32 and 0.01 < np.abs(wave).max() <= 1
    assert codec.decode([]).shape == (0,)


def test_codec2_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycodec2", None)
    with pytest.raises(ImportError, match="pip install pycodec2"):
        load_codec({"type": "codec2"})


# --- transformers' codecs -------------------------------------------------------------------------------------------


def small_mimi() -> MimiModel:
    config = MimiConfig(
        num_filters=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=16,
        codebook_size=32,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=4,
        num_semantic_quantizers=1,
        upsample_groups=16,
    )
    return MimiModel(config)


def small_dac() -> DacModel:
    config = DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4, 8],
        decoder_hidden_size=16,
        n_codebooks=4,
        codebook_size=32,
        codebook_dim=4,
    )
    return DacModel(config)


def small_encodec() -> EncodecModel:
    config = EncodecConfig(
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        codebook_size=32,
        num_lstm_layers=1,
        target_bandwidths=[0.75, 1.5],
    )
    return EncodecModel(config)


def small_xcodec() -> XcodecModel:
    acoustic = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[8, 5, 4, 2], decoder_hidden_size=32, hidden_size=16, codebook_dim=4
    )
    semantic = HubertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    config = XcodecConfig(
        target_bandwidths=[0.5, 1.0],
        codebook_size=32,
        codebook_dim=32,
        acoustic_model_config=acoustic,
        semantic_model_config=semantic,
    )
    return XcodecModel(config)


def randomised(model: Any) -> Any:
    """Codebooks are made of zeros, and every code would be 0."""
    for name, value in [*model.named_buffers(), *model.named_parameters()]:
        if any(part in name for part in ("embed_sum", "codebook.embed", "codebook.weight")):
            torch.nn.init.normal_(value.data, std=0.02)  # about as large as what they code
    return model.eval()


def own_codes(model: Any, wave: np.ndarray, hop: int) -> list[list[int]]:
    """(codebooks, frames) that the library finds when it is asked for all it has."""
    values = torch.from_numpy(np.pad(wave, (0, -len(wave) % hop)))[None, None]
    widths = getattr(model.config, "target_bandwidths", None)
    with torch.inference_mode():
        found = model.encode(values, **({"bandwidth": max(widths)} if widths else {})).audio_codes
    return found.reshape(-1, found.shape[-1]).tolist()


@pytest.mark.parametrize("make", [small_mimi, small_dac, small_encodec, small_xcodec])
def test_a_transformers_codec_gives_the_library_s_own_codes_and_sound(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomised(make())
    model.save_pretrained(tmp_path)
    codec: Any = load_codec({"type": "transformers", "path": str(tmp_path), "codebooks": 2})
    wave = buzz(1.03, codec.sample_rate)
    codes = codec.encode(wave)
    frames = codec.streams.split(codes)
    wanted = own_codes(model, wave, codec._hop)
    assert len(wanted) >= 2 and frames.T.tolist() == wanted[:2]
    assert len(set(codes)) > 2 and codec.codebook_size == 64
    assert len(codes) == pytest.approx(1.03 * codec.frame_rate, abs=2 * 2)
    heard = codec.decode(codes)
    assert heard.dtype == np.float32 and heard.ndim == 1 and np.isfinite(heard).all() and np.abs(heard).max() > 0
    assert len(heard) / codec.sample_rate == pytest.approx(1.03, abs=2 * 2 / codec.frame_rate)
    np.testing.assert_array_equal(heard, codec.decode(codes))
    assert not np.array_equal(heard, codec.decode(codec.streams.join(frames[::-1])))
    assert codec.encode(np.zeros(0, np.float32)) == [] and codec.decode([]).shape == (0,)


def test_a_transformers_codec_that_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path='/no/such' has no config\.json"):
        load_codec({"type": "transformers", "path": "/no/such"})
    Qwen2Config().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="is a 'qwen2' model: supported are mimi, dac, encodec, xcodec"):
        load_codec({"type": "transformers", "path": tmp_path / "text"})
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"model_type": "codec_of_tomorrow"}')
    with pytest.raises(ValueError, match="does not load: .*codec_of_tomorrow"):
        load_codec({"type": "transformers", "path": tmp_path / "new"})
    MimiConfig().save_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="has no weights: no model.safetensors"):
        load_codec({"type": "transformers", "path": tmp_path / "empty"})
    small_dac().save_pretrained(tmp_path / "dac")
    for codebooks in (0, 5, 1.5, True):
        with pytest.raises(ValueError, match=f"codebooks={codebooks!r} is not allowed: .* has 1 to 4"):
            load_codec({"type": "transformers", "path": tmp_path / "dac", "codebooks": codebooks})
    model = EncodecModel(
        EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16, normalize=True, audio_channels=2)
    )
    model.save_pretrained(tmp_path / "stereo")
    with pytest.raises(ValueError, match="use encodec_24khz"):
        load_codec({"type": "transformers", "path": tmp_path / "stereo"})


# --- who knows them -------------------------------------------------------------------------------------------------


def test_a_codec_of_the_user_s_package_is_known_outside_a_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None
) -> None:
    (tmp_path / "their_package.py").write_text(
        "from wavalign_ext.speech.codecs import register_codec\n\n"
        "@register_codec('theirs')\ndef make(): return 'a codec'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "their_package")
    assert load_codec({"type": "theirs"}) == "a codec"
    with pytest.raises(ValueError, match="codec2, glm4_voice, kimi_audio, mel_vq, none, theirs, transformers, units"):
        load_codec({"type": "magic"})
