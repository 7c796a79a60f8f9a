"""Speech codecs behind one small protocol: waveforms to token codes and back.

``mel_vq`` and ``units`` are fitted by the pocket build; other packages add theirs with :func:`register_codec`.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from wavalign_ext.speech import devices


class SpeechCodec(Protocol):
    """``sample_rate`` is in Hz, of what encode takes and decode returns; ``frame_rate`` in codes per second.

    A class may have ``version``, an int (1 where it has none), raised when its code gives a recording other codes than
    before. If it takes an argument ``device``, it gets what torch takes, chosen by :mod:`wavalign_ext.speech.devices`.
    """

    sample_rate: int
    frame_rate: float
    codebook_size: int

    def encode(self, wave: np.ndarray) -> list[int]:
        """Codes in [0, codebook_size) of a mono float32 waveform in [-1, 1]."""
        ...

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """A mono float32 waveform; empty for no codes."""
        ...


_CODECS: dict[str, Callable[..., SpeechCodec]] = {}


def register_codec(name: str) -> Callable[[Callable[..., SpeechCodec]], Callable[..., SpeechCodec]]:
    """Register a codec class under ``wavalign.codec.type=NAME``. Raises ValueError when the name is taken."""

    def register(factory: Callable[..., SpeechCodec]) -> Callable[..., SpeechCodec]:
        if name in _CODECS:
            raise ValueError(f"codec {name!r} is registered already: choose another name")
        _CODECS[name] = factory
        return factory

    return register


def load_codec(spec: Mapping[str, Any], device: str | None = None) -> SpeechCodec:
    """The codec of ``{"type": name, **arguments}``; ``device`` stands in for the spec's, where the codec has one.

    Raises:
        ValueError: an unknown type, naming the known ones, or a device that is none.
    """
    arguments = dict(spec)
    make = _factory(arguments.pop("type", None))
    wanted = device_of(spec)
    if wanted is not None:
        arguments["device"] = devices.choose(device or wanted)
    return make(**arguments)


def device_of(spec: Mapping[str, Any]) -> str | None:
    """The device that a spec asks for; None for a codec that has no such argument. Raises as load_codec."""
    has_device = "device" in inspect.signature(_factory(spec.get("type"))).parameters
    return spec.get("device") or "auto" if has_device else None


def codec_version(spec: Mapping[str, Any]) -> int:
    """The version of a codec's code. Raises as load_codec."""
    return getattr(_factory(spec.get("type")), "version", 1)


def _factory(name: Any) -> Callable[..., SpeechCodec]:
    if name not in _CODECS:
        raise ValueError(f"codec type {name!r} is not known: one of {', '.join(sorted(_CODECS))}")
    return _CODECS[name]


def load_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Any file that libsndfile reads, as mono float32 at ``sample_rate`` Hz.

    Raises:
        ValueError: the file is missing, unreadable, empty or has a sample that is no number; the message names it.
    """
    import soundfile
    import soxr

    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"audio {str(path)!r} cannot be read: {error}") from error
    if len(wave) == 0:
        raise ValueError(f"audio {str(path)!r} is empty: give a recording with at least one sample")
    if not np.isfinite(wave).all():
        raise ValueError(f"audio {str(path)!r} has samples that are not finite: write it again")
    mono = wave.mean(axis=1)
    return mono if rate == sample_rate else soxr.resample(mono, rate, sample_rate).astype(np.float32)


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
        self.spectra = tensors.get("spectra")
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
    """k-means over three log-mel frames (37.5 ms); decodes by Griffin-Lim from each code's mean log spectrum."""

    N_FFT, HOP, STACK, MELS = 1024, 200, 3, 60
    GRIFFIN_LIM_STEPS = 40

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "mel_vq")
        self.frame_rate = self.sample_rate / (self.HOP * self.STACK)

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
        """Griffin-Lim from zero phases, so equal codes give equal audio and no random state is used."""
        from torchaudio.functional import griffinlim

        if not len(codes):
            return np.zeros(0, dtype=np.float32)
        wrong = next((code for code in codes if not 0 <= code < self.codebook_size), None)
        if wrong is not None:
            raise ValueError(f"code {wrong} is out of range: mel_vq has codes 0 to {self.codebook_size - 1}")
        assert self.spectra is not None
        magnitudes = self.spectra[torch.as_tensor(codes)].exp().reshape(-1, self.N_FFT // 2 + 1).T
        magnitudes = torch.cat([magnitudes, magnitudes[:, -1:]], 1)  # stft of n hops has n + 1 frames
        wave = griffinlim(
            magnitudes,
            torch.hann_window(self.N_FFT),
            self.N_FFT,
            self.HOP,
            self.N_FFT,
            power=1.0,
            n_iter=self.GRIFFIN_LIM_STEPS,
            momentum=0.99,
            length=None,
            rand_init=False,
        )
        return wave.numpy()


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
