"""SenseVoiceSmall: what VITA-Audio-Plus models hear with, from VITA's checkpoint or from FunASR's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wavalign_ext.speech.encoders.base import FrozenEncoder, register_encoder
from wavalign_ext.speech.encoders.fbank import HOP, STEP, WINDOW, fbank, read_cmvn, stack_frames
from wavalign_ext.speech.encoders.sanm import HEADS, SenseVoice, Shape
from wavalign_ext.speech.encoders.tensors import build_network, read_tensors

VITA_PREFIX = "model.audio_model.model."
UNUSED = "ctc."  # the head that SenseVoice reads text from

# What the code here does, by the names of FunASR's config.yaml.
BUILT_IN = {
    "encoder_conf": {
        "attention_heads": HEADS,
        "normalize_before": True,
        "sanm_shfit": 0,
        "selfattention_layer_type": "sanm",
    },
    "frontend_conf": {
        "fs": 16000,
        "window": "hamming",
        "n_mels": 80,
        "frame_length": 25,
        "frame_shift": 10,
        "lfr_m": 7,
        "lfr_n": 6,
    },
}


@register_encoder("sensevoice")
class SenseVoiceSmall(FrozenEncoder):
    """One vector per 60 ms and four in front, 171 for 10 s; deterministic: FunASR's dither is left out.

    Args:
        path: folder with ``am.mvn`` and either ``model.pt`` (FunAudioLLM/SenseVoiceSmall) or a VITA-Audio-Plus
            checkpoint. Where there is a ``config.yaml``, it must say what is built in. Nothing is downloaded.
        device: where it runs.
        dtype: float32 or bfloat16; by default what the weights are stored in, bfloat16 in VITA's checkpoints, whose
            code also rounds the features and the position encodings to it.

    Raises:
        ValueError: a file is missing or is none of SenseVoiceSmall's.
    """

    name = "sensevoice"
    least_s, most_s = WINDOW / 16000, 30.0  # one window; what FunAudioLLM/SenseVoice's README allows

    def __init__(self, path: str | Path, device: str = "cpu", dtype: str | None = None) -> None:
        folder, where = Path(path), f"encoder 'sensevoice': path={str(path)!r}"
        if not (folder / "am.mvn").is_file():
            raise ValueError(f"{where} has no am.mvn: copy it there from FunAudioLLM/SenseVoiceSmall")
        if (folder / "config.yaml").is_file():
            _check_config(folder / "config.yaml")
        tensors = _read(folder, where)
        shape = _shape(tensors, where)
        network = build_network(lambda: SenseVoice(shape), tensors, where, dtype)
        self.size, self._cmvn = shape.size, read_cmvn(folder / "am.mvn")
        super().__init__(network, device, {"cmvn": self._cmvn.tolist()})

    def _frames(self, samples: int) -> int:
        return -(-(1 + (samples - WINDOW) // HOP) // STEP) + len(SenseVoice.QUERIES)

    def _encode(self, wave: torch.Tensor) -> torch.Tensor:
        shift, scale = self._cmvn
        features = (stack_frames(fbank(wave)) + shift) * scale
        return self.network(features.to(self.device))


def _read(folder: Path, where: str) -> dict[str, torch.Tensor]:
    if (folder / "model.pt").is_file():
        try:
            tensors: Mapping[str, Any] = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds here
            raise ValueError(f"{where}: model.pt cannot be read: {' '.join(str(error).split())[:200]}") from error
        for around in ("state_dict", "model"):  # FunASR's trainer wraps what it saves
            tensors = tensors.get(around, tensors)
    else:
        tensors = read_tensors(folder, VITA_PREFIX, where)
    return {name: value for name, value in tensors.items() if not name.startswith(UNUSED)}


def _shape(tensors: Mapping[str, torch.Tensor], where: str) -> Shape:
    """The sizes that the tensors have; what does not fit them is found when they are loaded."""

    def blocks(stack: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(rf"encoder\.{stack}\.(\d+)\.", name))})

    try:
        size, feed_forward = tensors["encoder.encoders0.0.feed_forward.w_2.weight"].shape
        kernel = tensors["encoder.encoders0.0.self_attn.fsmn_block.weight"].shape[-1]
        input_size = tensors["embed.weight"].shape[-1]
    except KeyError as error:
        raise ValueError(
            f"{where} has no tensor {error}: give the folder of SenseVoiceSmall or VITA-Audio-Plus"
        ) from error
    return Shape(input_size, size, feed_forward, kernel, 1 + blocks("encoders"), blocks("tp_encoders"))


def _check_config(path: Path) -> None:
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(OmegaConf.load(path))
    for part, expected in BUILT_IN.items():
        for key, value in expected.items():
            found = (config.get(part) or {}).get(key, value)
            if found != value:
                raise ValueError(f"{str(path)!r} has {part}.{key}: {found!r}: the encoder 'sensevoice' has {value!r}")
