"""Speech codecs behind one small protocol: waveforms to token codes and back.

Each is known by a name (:func:`register_codec`); :func:`wavalign_ext.speech.codecs.load_codec` makes one.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

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


def make_codec(spec: Mapping[str, Any], device: str | None = None) -> SpeechCodec:
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
    """The device that a spec asks for; None for a codec that has no such argument. Raises as make_codec."""
    has_device = "device" in inspect.signature(_factory(spec.get("type"))).parameters
    return spec.get("device") or "auto" if has_device else None


def codec_version(spec: Mapping[str, Any]) -> int:
    """The version of a codec's code. Raises as make_codec."""
    return getattr(_factory(spec.get("type")), "version", 1)


def _factory(name: Any) -> Callable[..., SpeechCodec]:
    if name not in _CODECS:
        raise ValueError(f"codec type {name!r} is not known: one of {', '.join(sorted(_CODECS))}")
    return _CODECS[name]
