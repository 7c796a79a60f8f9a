"""Neural codecs of transformers, from a folder of weights: Mimi, DAC, EnCodec and X-Codec."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavalign_ext.checkpoints.strict_loading import pretrained
from wavalign_ext.speech.codecs.base import register_codec
from wavalign_ext.speech.codecs.codebook_stream import CodeStreams

# What a family of codecs does: (model, wave (1, 1, S), K) to codes (K or more, T), and (model, codes (K, T)) to a wave.
_Encode = Callable[[Any, torch.Tensor, int], torch.Tensor]
_Decode = Callable[[Any, torch.Tensor], torch.Tensor]


@register_codec("transformers")
class TransformersCodec:
    """The first ``codebooks`` codebooks of a codec, as one stream (:class:`CodeStreams`): K codes per frame.

    Args:
        path: folder with ``config.json`` and weights. Nothing is downloaded.
        codebooks: how many to use; each adds ``config.codebook_size`` codes to the layout's speech tokens. More keep
            more of the voice and make targets longer.
        device: where it runs: auto, cpu, cuda or cuda:N (:mod:`wavalign_ext.speech.devices`).

    Raises:
        ValueError: no such folder, a model that is none of these codecs, or too many codebooks.
    """

    def __init__(self, path: str | Path, codebooks: int = 1, device: str = "cpu") -> None:
        self.model = _load(Path(path)).to(device)
        config = self.model.config
        self._encode, self._decode, self.sample_rate, self._hop, most = _facts(self.model)
        if isinstance(codebooks, bool) or not isinstance(codebooks, int) or not 1 <= codebooks <= most:
            raise ValueError(
                f"codec 'transformers': codebooks={codebooks!r} is not allowed: {str(path)!r} has 1 to {most}"
            )
        self.codebooks = codebooks
        self.streams = CodeStreams([config.codebook_size] * codebooks)
        self.codebook_size = self.streams.size
        self.frame_rate = codebooks * self.sample_rate / self._hop

    @torch.inference_mode()
    def encode(self, wave: np.ndarray) -> list[int]:
        """``codebooks`` codes per frame; the last frame is filled with silence."""
        if not len(wave):
            return []
        padded = np.pad(np.asarray(wave, dtype=np.float32), (0, -len(wave) % self._hop))
        values = torch.from_numpy(padded)[None, None].to(self.model.device)
        frames = self._encode(self.model, values, self.codebooks)[: self.codebooks].T
        return self.streams.join(frames.tolist())

    @torch.inference_mode()
    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """See :class:`wavalign_ext.speech.codecs.base.SpeechCodec`; frames that are not whole are left out."""
        frames = self.streams.split(codes)
        if not len(frames):
            return np.zeros(0, dtype=np.float32)
        values = self._decode(self.model, torch.from_numpy(frames.T.copy()).to(self.model.device))
        return values.reshape(-1).float().cpu().numpy()


def _load(path: Path) -> Any:
    from transformers import AutoConfig, AutoModel

    where = f"codec 'transformers': path={str(path)!r}"
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{where} has no config.json: give a folder of weights (hf download kyutai/mimi --local-dir …)"
        )
    try:
        kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
    except ValueError as error:  # a type that this transformers does not have
        raise ValueError(f"{where} does not load: {' '.join(str(error).split())[:200]}") from error
    if kind not in _FAMILIES:
        raise ValueError(f"{where} is a {kind!r} model: supported are {', '.join(_FAMILIES)}")
    return pretrained(AutoModel, path, where, dtype=torch.float32)


def _facts(model: Any) -> tuple[_Encode, _Decode, int, int, int]:
    """(encode, decode, sample rate in Hz, samples per frame, codebooks) of a loaded model."""
    config, kind = model.config, model.config.model_type
    encode, decode = _FAMILIES[kind]
    if kind == "encodec" and (config.audio_channels != 1 or config.normalize or config.chunk_length_s):
        raise ValueError("codec 'transformers': only mono EnCodec without chunks is supported: use encodec_24khz")
    if kind == "mimi":
        return encode, decode, config.sampling_rate, config.frame_size, config.num_quantizers
    rate = config.sample_rate if kind == "xcodec" else config.sampling_rate
    most = config.n_codebooks if kind == "dac" else _most_quantizers(model)
    return encode, decode, rate, config.hop_length, most


def _most_quantizers(model: Any) -> int:
    return max(map(model.quantizer.get_num_quantizers_for_bandwidth, model.config.target_bandwidths))


def _bandwidth(model: Any, codebooks: int) -> float:
    """The smallest bandwidth with that many codebooks: quantisers are residual, so those beyond change nothing."""
    enough = model.quantizer.get_num_quantizers_for_bandwidth
    return min(width for width in model.config.target_bandwidths if enough(width) >= codebooks)


_FAMILIES: dict[str, tuple[_Encode, _Decode]] = {
    "mimi": (
        lambda model, wave, books: model.encode(wave, num_quantizers=books).audio_codes[0],
        lambda model, codes: model.decode(codes[None]).audio_values,
    ),
    "dac": (
        lambda model, wave, books: model.encode(wave, n_quantizers=books).audio_codes[0],
        lambda model, codes: model.decode(audio_codes=codes[None]).audio_values,
    ),
    "encodec": (
        lambda model, wave, books: model.encode(wave, bandwidth=_bandwidth(model, books)).audio_codes[0, 0],
        lambda model, codes: model.decode(codes[None, None], [None]).audio_values,
    ),
    "xcodec": (
        lambda model, wave, books: model.encode(wave, bandwidth=_bandwidth(model, books)).audio_codes[0],
        lambda model, codes: model.decode(codes[None]).audio_values,
    ),
}
