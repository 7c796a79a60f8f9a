"""Step-Audio 2's encoder, up to the last layer that has a stride: one vector per 80 ms.

Source: stepfun-ai/Step-Audio2, utils.py and stepaudio2.py (features, pieces of 25 s), and the checkpoint's own
modeling_step_audio_2.py (encoder, adapter). The rest of the published adapter, two linears around a ReLU, is the
projector.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from wavalign_ext.speech.encoders.base import FrozenEncoder, register_encoder
from wavalign_ext.speech.encoders.tensors import build_network, read_tensors
from wavalign_ext.speech.encoders.whisper import CONV_STRIDE, HOP, mel_extractor, padding_mask

SILENCE = 479  # samples behind a recording; the mel frames that they add are masked
PROJECTOR = ("linear1.", "linear2.")

# Published names of a block's parts, and those of transformers' Whisper layers.
RENAMED = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}


class _Network(nn.Module):
    """A Whisper encoder for mel frames of any number, whose mean over two precedes its norm, and a convolution."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        from transformers import Qwen2AudioEncoderConfig
        from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

        size = config["n_audio_state"]
        shape = Qwen2AudioEncoderConfig(
            num_mel_bins=config["n_mels"],
            max_source_positions=config["n_audio_ctx"],
            d_model=size,
            encoder_attention_heads=config["n_audio_head"],
            encoder_layers=config["n_audio_layer"],
            encoder_ffn_dim=4 * size,
        )
        self.tower = Qwen2AudioEncoder(shape)
        self.conv = nn.Conv1d(size, size, config["kernel_size"], config["adapter_stride"], padding=1)

    def forward(self, mel: torch.Tensor, valid: int) -> torch.Tensor:
        """(ceil(T / 8) or less, size) of ``mel`` (mels, T), of which the first ``valid`` frames are listened to."""
        tower, frames = self.tower, mel.shape[-1]
        x = F.gelu(tower.conv2(F.gelu(tower.conv1(mel[None])))).mT
        x = x + tower.embed_positions.weight[: x.shape[1]]
        heard = len(range((frames + 1) % 2, valid, CONV_STRIDE))  # the published mask: every second mel frame's
        mask = padding_mask(x.shape[1], heard, x)
        for layer in tower.layers:
            x = layer(x, mask)
        x = tower.layer_norm(tower.avg_pooler(x.mT).mT)
        return F.gelu(self.conv(x.mT)).mT[0]


@register_encoder("step_audio2")
class StepAudio2(FrozenEncoder):
    """One vector per 80 ms of up to 25 s.

    Args:
        path: folder of a Step-Audio 2 mini checkpoint: ``config.json`` and safetensors. Nothing is downloaded.
        device: where it runs.
        dtype: by default what the weights are stored in.

    Raises:
        ValueError: a file is missing, or is none of Step-Audio 2's.
    """

    name = "step_audio2"
    least_s, most_s = (2 * HOP + 1) / 16000, 25.0  # what gives one vector; the published pieces

    def __init__(self, path: str | Path, device: str = "cpu", dtype: str | None = None) -> None:
        folder, where = Path(path), f"encoder 'step_audio2': path={str(path)!r}"
        if not (folder / "config.json").is_file():
            raise ValueError(f"{where} has no config.json: give the folder of the published checkpoint")
        config = json.loads((folder / "config.json").read_text()).get("audio_encoder_config")
        if not config or (config.get("kernel_size"), config.get("adapter_stride")) != (3, 2):
            raise ValueError(
                f"{where}: audio_encoder_config in config.json has to have kernel_size 3 and adapter_stride 2: "
                "give the folder of Step-Audio 2 mini"
            )
        encoder, adapter = (read_tensors(folder, prefix, where) for prefix in ("encoder.", "adapter."))
        tensors = {f"tower.{_renamed(name)}": value for name, value in encoder.items()}
        tensors |= {name: value for name, value in adapter.items() if not name.startswith(PROJECTOR)}
        network = build_network(lambda: _Network(config), tensors, where, dtype)
        self.size, self._extract = config["n_audio_state"], mel_extractor(config["n_mels"])
        super().__init__(network, device, {})

    def _frames(self, samples: int) -> int:
        pooled = ((samples + SILENCE) // HOP - 2 + 1) // CONV_STRIDE // 2
        return (pooled - 1) // 2 + 1

    def _encode(self, wave: torch.Tensor) -> torch.Tensor:
        padded = F.pad(wave, (0, SILENCE)).numpy()
        mel = self._extract(padded, sampling_rate=16000, padding="do_not_pad", return_tensors="pt").input_features[0]
        heard = self.network(mel.to(self.device, self.dtype), mel.shape[-1] - 2)
        return heard[: self._frames(len(wave))]


def _renamed(name: str) -> str:
    """The name in transformers' Qwen2AudioEncoder of a published tensor."""
    name = name.replace("positional_embedding", "embed_positions").replace("after_norm", "layer_norm")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    return f"layers.{match[1]}.{RENAMED.get(match[2], match[2])}.{match[3]}" if match else name
