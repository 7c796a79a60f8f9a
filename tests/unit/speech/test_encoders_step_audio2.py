"""Step-Audio 2's encoder against numbers of the published code.

They come from a transcription of the encoder and of the adapter's convolution in Step-Audio 2 mini's
modeling_step_audio_2.py (AudioEncoder, Adaptor), fed by Step-Audio2's utils.py as yuekaizhang/Step-Audio2 has it at
7c58630d7f03834beac9e074c82670386e14d660 (log_mel_spectrogram with padding 479, padding_mels), on a CPU with torch
2.11. The weights and the wave are formulas.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from formula_weights import speechlike, weight
from safetensors.torch import save_file

from wavalign_ext.speech.encoders import load_encoder
from wavalign_ext.speech.encoders.step_audio2 import StepAudio2

CONFIG = dict(n_mels=128, n_audio_ctx=1500, n_audio_state=32, n_audio_head=4, n_audio_layer=2)
ADAPTER = dict(kernel_size=3, adapter_stride=2, llm_dim=24)
OUT = [  # of 16161 samples, every 4th of 13 rows and every 8th of 32 columns
    0.005957, 0.296119, -0.11501, -0.122679, -0.169842, 0.560284, 0.475236, -0.16278,
    -0.168619, -0.15716, -0.158173, -0.094774, -0.035079, 0.986896, -0.136876, -0.16888,
]  # fmt: skip


def published_shapes() -> dict[str, tuple[int, ...]]:
    size = CONFIG["n_audio_state"]
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (size, CONFIG["n_mels"], 3),
        "encoder.conv1.bias": (size,),
        "encoder.conv2.weight": (size, size, 3),
        "encoder.conv2.bias": (size,),
        "encoder.positional_embedding.weight": (CONFIG["n_audio_ctx"], size),
        "encoder.after_norm.weight": (size,),
        "encoder.after_norm.bias": (size,),
        "adapter.conv.weight": (size, size, 3),
        "adapter.conv.bias": (size,),
        "adapter.linear1.weight": (2048, size),
        "adapter.linear1.bias": (2048,),
        "adapter.linear2.weight": (24, 2048),
        "adapter.linear2.bias": (24,),
    }
    parts = {"attn.query": (size, size), "attn.key": (size, size), "attn.value": (size, size), "attn.out": (size, size)}
    parts |= {"mlp.0": (4 * size, size), "mlp.2": (size, 4 * size), "attn_ln": (size,), "mlp_ln": (size,)}
    for block in range(CONFIG["n_audio_layer"]):
        for part, shape in parts.items():
            shapes[f"encoder.blocks.{block}.{part}.weight"] = shape
            if part != "attn.key":
                shapes[f"encoder.blocks.{block}.{part}.bias"] = shape[:1]
    return shapes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {name: weight(name, shape).contiguous() for name, shape in published_shapes().items()}
    save_file(tensors | {"model.norm.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"audio_encoder_config": CONFIG | ADAPTER}))
    return tmp_path


def test_what_is_heard_is_what_the_published_code_hears(folder: Path) -> None:
    heard = load_encoder({"type": "step_audio2", "path": folder}).encode(speechlike(26)[:16161])
    assert heard.shape == (13, 32)
    np.testing.assert_allclose(heard[::4, ::8].flatten(), OUT, atol=1e-4, rtol=0)


@pytest.mark.parametrize("samples", [321, 480, 481, 960, 961, 1120, 1121, 15680, 16000, 16161, 25 * 16000])
def test_frames_are_the_published_count(folder: Path, samples: int) -> None:
    """compute_token_num of utils.py, of a spectrogram with (samples + 479) // 160 frames."""
    encoder = StepAudio2(folder)
    after_pool = ((samples + 479) // 160 - 2 + 1) // 2 // 2
    assert encoder.frames(samples) == (after_pool + 2 * 1 - 3) // 2 + 1 >= 1
    if samples <= 16161:
        assert len(encoder.encode(speechlike(2)[:samples])) == encoder.frames(samples)


def test_bfloat16_is_near_float32(folder: Path) -> None:
    exact = StepAudio2(folder).encode(speechlike(1))
    rounded = StepAudio2(folder, dtype="bfloat16").encode(speechlike(1))
    assert rounded.dtype == torch.bfloat16 and 0 < (rounded.float() - exact).abs().max() < 0.06


def test_limits_and_folders_that_are_not_whole_are_refused(folder: Path) -> None:
    encoder = StepAudio2(folder)
    for samples, kind in ((320, "short"), (25 * 16000 + 1, "long")):
        with pytest.raises(ValueError, match=f"too {kind}: 0.0201 to 25 s are allowed"):
            encoder.frames(samples)
    (folder / "config.json").write_text(json.dumps({"audio_encoder_config": CONFIG | ADAPTER | {"adapter_stride": 4}}))
    with pytest.raises(ValueError, match="has to have kernel_size 3 and adapter_stride 2: give the folder of Step"):
        StepAudio2(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        StepAudio2(folder)
