"""Codecs that the pocket build fits to its own recordings: k-means over features, one code a frame."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wavalign_ext.speech.codecs.base import register_codec
from wavalign_ext.speech.codecs.unit_selection import UnitSelection


class _Codebook:
    """Nearest-centroid coding of ``stack`` consecutive feature frames, ``hop`` samples apart."""

    def __init__(self, path: str | Path, kind: str) -> None:
        from safetensors.torch import load_file

        folder = Path(path)
        if not (folder / "codec.json").is_file():
            raise ValueError(f"codec {kind!r}: {str(folder)!r} has no codec.json: give the folder that the build wrote")
        settings = json.loads((folder / "codec.json").read_text())
        if settings["type"] != kind:
            raise ValueError(f"codec {kind!r}: {str(folder)!r} holds a {settings['type']!r} codec")
        tensors = load_file(folder / "codec.safetensors")
        self.centroids = tensors["centroids"]
        self.tensors = tensors
        self.sample_rate = int(settings["sample_rate"])
        self.codebook_size = len(self.centroids)

    def nearest(self, features: torch.Tensor) -> list[int]:
        """Index of the centroid nearest to each row of ``features`` (N, D)."""
        return torch.cdist(features, self.centroids).argmin(1).tolist()


def save_codebook(path: Path, kind: str, sample_rate: int, tensors: dict[str, torch.Tensor]) -> None:
    """Write what ``mel_vq`` and ``units`` load."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path / "codec.safetensors")
    (path / "codec.json").write_text(json.dumps({"type": kind, "sample_rate": sample_rate}))


@register_codec("mel_vq")
class MelVQ(_Codebook):
    """k-means over three log-mel frames (37.5 ms); decodes by unit selection from the recordings it was fitted on."""

    N_FFT, HOP, STACK, MELS = 1024, 200, 3, 60

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "mel_vq")
        self.frame_rate = self.sample_rate / (self.HOP * self.STACK)
        parts = {name: self.tensors[name].numpy() for name in ("samples", "lengths", "codes", "counts", "edges")}
        self._pieces = UnitSelection(**parts, hop=self.HOP * self.STACK)

    @classmethod
    def spectrogram(cls, wave: np.ndarray) -> torch.Tensor:
        """Magnitudes (frames, N_FFT/2 + 1), a whole number of stacks."""
        spectrum = torch.stft(
            torch.from_numpy(np.asarray(wave, dtype=np.float32)),
            cls.N_FFT,
            cls.HOP,
            window=torch.hann_window(cls.N_FFT),
            return_complex=True,
            pad_mode="constant",
        ).abs()
        return spectrum.T[: spectrum.shape[1] // cls.STACK * cls.STACK]

    @classmethod
    def features(cls, spectrum: torch.Tensor, sample_rate: int) -> torch.Tensor:
        """Stacked log-mel frames (codes, STACK · MELS)."""
        from torchaudio.functional import melscale_fbanks

        banks = melscale_fbanks(cls.N_FFT // 2 + 1, 50.0, min(7800.0, sample_rate / 2), cls.MELS, sample_rate)
        return torch.log(spectrum @ banks + 1e-3).reshape(-1, cls.STACK * cls.MELS)

    def encode(self, wave: np.ndarray) -> list[int]:
        """One code per 37.5 ms."""
        return self.nearest(self.features(self.spectrogram(wave), self.sample_rate))

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """Recorded pieces, joined: equal codes give equal audio, and no random state is used."""
        if not len(codes):
            return np.zeros(0, dtype=np.float32)
        wrong = next((code for code in codes if not 0 <= code < self.codebook_size), None)
        if wrong is not None:
            raise ValueError(f"code {wrong} is out of range: mel_vq has codes 0 to {self.codebook_size - 1}")
        return self._pieces(codes)


@register_codec("units")
class Units(_Codebook):
    """k-means over four MFCC frames (40 ms) with the utterance's mean taken out: what was said, less by whom.

    For the user's speech only; it cannot be decoded.
    """

    N_FFT, WINDOW, HOP, STACK, MELS, CEPSTRA = 512, 400, 160, 4, 40, 14

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "units")
        self.frame_rate = self.sample_rate / (self.HOP * self.STACK)

    @classmethod
    def features(cls, wave: np.ndarray, sample_rate: int) -> torch.Tensor:
        """Stacked cepstra (codes, STACK · CEPSTRA)."""
        from torchaudio.functional import create_dct, melscale_fbanks

        spectrum = torch.stft(
            torch.from_numpy(np.asarray(wave, dtype=np.float32)),
            cls.N_FFT,
            cls.HOP,
            cls.WINDOW,
            torch.hann_window(cls.WINDOW),
            return_complex=True,
            pad_mode="constant",
        ).abs()
        banks = melscale_fbanks(cls.N_FFT // 2 + 1, 60.0, min(7600.0, sample_rate / 2), cls.MELS, sample_rate)
        cepstra = torch.log(spectrum.T @ banks + 1e-3) @ create_dct(cls.CEPSTRA, cls.MELS, "ortho")
        cepstra = cepstra - cepstra.mean(0, keepdim=True)
        cepstra[:, 0] *= 0.5  # loudness says less than shape
        frames = len(cepstra) // cls.STACK * cls.STACK
        return cepstra[:frames].reshape(-1, cls.STACK * cls.CEPSTRA)

    def encode(self, wave: np.ndarray) -> list[int]:
        """One code per 40 ms."""
        return self.nearest(self.features(wave, self.sample_rate))

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """Not possible: the units keep no voice."""
        raise ValueError("codec 'units' cannot decode: it codes the user's speech; play the recording instead")
