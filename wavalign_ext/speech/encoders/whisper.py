"""Whisper-shaped encoders of transformers: Whisper itself, as Kimi-Audio hears with it, and Qwen2-Audio's tower."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wavalign_ext.speech.encoders.base import FrozenEncoder, register_encoder
from wavalign_ext.speech.encoders.tensors import build_network, read_tensors

HOP, CONV_STRIDE = 160, 2  # samples per mel frame, mel frames per position


def mel_extractor(mels: int) -> Any:
    """Whisper's log-mel features, 100 frames a second."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=mels, hop_length=HOP, sampling_rate=16000)


def padding_mask(length: int, valid: int, like: torch.Tensor) -> torch.Tensor:
    """(1, 1, 1, length) to add to attention scores: only the first ``valid`` positions are listened to."""
    mask = torch.zeros(1, 1, 1, length, dtype=like.dtype, device=like.device)
    mask[..., valid:] = torch.finfo(like.dtype).min
    return mask


def read_config(path: str | Path, kind: str, where: str) -> Any:
    """transformers' configuration in the folder. Raises ValueError when there is none or it is of another model."""
    from transformers import AutoConfig

    file = Path(path) / "config.json"
    if not file.is_file():
        raise ValueError(f"{where} has no config.json: give the folder of the published checkpoint")
    found = json.loads(file.read_text()).get("model_type")
    if found != kind:
        raise ValueError(f"{where} is a {found!r} model: give one whose config.json says {kind!r}")
    return AutoConfig.from_pretrained(path, local_files_only=True)


class _PaddedEncoder(FrozenEncoder):
    """Hears pieces of as many samples as the network has positions for (30 s), filled up with silence."""

    def __init__(self, network: nn.Module, config: Any, device: str, **facts: Any) -> None:
        self._piece = config.max_source_positions * CONV_STRIDE * HOP
        self._extract = mel_extractor(config.num_mel_bins)
        super().__init__(network, device, facts)

    def _mel(self, wave: torch.Tensor) -> torch.Tensor:
        """(1, mels, positions * 2) of one piece."""
        mel = self._extract(wave.numpy(), sampling_rate=16000, max_length=self._piece, return_tensors="pt")
        return mel.input_features.to(self.device, self.dtype)


@register_encoder("whisper")
class Whisper(_PaddedEncoder):
    """One vector per 20 ms and ``stack``, however long the recording: each 30 s are heard by themselves.

    As in MoonshotAI/Kimi-Audio, kimia_infer/models/tokenizer/whisper_Lv3/whisper.py: the silence that fills a piece
    is heard too, and what comes after ceil(samples / (320 stack)) vectors is cut off.

    Args:
        path: folder of a Whisper checkpoint: ``config.json`` and safetensors. Nothing is downloaded.
        stack: how many neighboring vectors make one; 4 for Kimi-Audio, which hears with Whisper large-v3.
        device: where it runs.
        dtype: by default what the weights are stored in; Kimi-Audio's code sets bfloat16.

    Raises:
        ValueError: a file is missing, or is none of Whisper's; or ``stack`` does not divide the positions.
    """

    name = "whisper"
    least_s, most_s = 1 / 16000, math.inf

    def __init__(self, path: str | Path, stack: int = 1, device: str = "cpu", dtype: str | None = None) -> None:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        where = f"encoder 'whisper': path={str(path)!r}"
        config = read_config(path, "whisper", where)
        positions = config.max_source_positions
        if isinstance(stack, bool) or not isinstance(stack, int) or stack < 1 or positions % stack:
            raise ValueError(f"encoder 'whisper': stack={stack!r} is not allowed: a divisor of {positions}")
        folder = Path(path)
        tensors = read_tensors(folder, "model.encoder.", where) or read_tensors(folder, "encoder.", where)
        network = build_network(lambda: WhisperEncoder(config), tensors, where, dtype)
        self.stack, self.size = stack, config.d_model * stack
        super().__init__(network, config, device, stack=stack)

    def _frames(self, samples: int) -> int:
        return -(-samples // (CONV_STRIDE * HOP * self.stack))

    def _encode(self, wave: torch.Tensor) -> torch.Tensor:
        heard = [self.network(self._mel(piece)).last_hidden_state[0] for piece in wave.split(self._piece)]
        frames = self._frames(len(wave)) * self.stack
        return torch.cat(heard)[:frames].reshape(-1, self.size)


@register_encoder("qwen2_audio")
class Qwen2Audio(_PaddedEncoder):
    """One vector per 40 ms of up to 30 s; the silence that fills them up is masked.

    As transformers' Qwen2AudioForConditionalGeneration computes them before its projector.

    Args:
        path: folder of a Qwen2-Audio checkpoint: ``config.json`` and safetensors. Nothing is downloaded.
        device: where it runs.
        dtype: by default what the weights are stored in.

    Raises:
        ValueError: a file is missing, or is none of Qwen2-Audio's.
    """

    name = "qwen2_audio"
    least_s = (2 * HOP + 1) / 16000  # what gives one vector

    def __init__(self, path: str | Path, device: str = "cpu", dtype: str | None = None) -> None:
        from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

        where = f"encoder 'qwen2_audio': path={str(path)!r}"
        config = read_config(path, "qwen2_audio", where).audio_config
        tensors = read_tensors(Path(path), "audio_tower.", where)
        network = build_network(lambda: Qwen2AudioEncoder(config), tensors, where, dtype)
        self.size = config.d_model
        super().__init__(network, config, device)
        self.most_s = self._piece / self.sample_rate

    def _positions(self, samples: int) -> int:
        mel_frames = -(-samples // HOP)
        return (mel_frames - 1) // CONV_STRIDE + 1

    def _frames(self, samples: int) -> int:
        return self._positions(samples) // 2  # an average of two

    def _encode(self, wave: torch.Tensor) -> torch.Tensor:
        mel = self._mel(wave)
        mask = padding_mask(mel.shape[-1] // CONV_STRIDE, self._positions(len(wave)), mel)
        return self.network(mel, attention_mask=mask).last_hidden_state[0, : self._frames(len(wave))]
