"""The user's speech through an encoder, in a codec's place: a vector is a code, the same 0 each, and lies in a file.

``{"encoder": {type: …, path: …}, "most": N}`` is such a codec's spec. With ``"codec": {type: …}`` in it, the codes are
that codec's, as many as there are vectors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavalign_ext.speech import devices
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.codecs.base import SpeechCodec, codec_version, device_of
from wavalign_ext.speech.encoders import load_encoder
from wavalign_ext.speech.encoders.base import SpeechEncoder
from wavalign_ext.speech.heard import save_features
from wavalign_ext.speech.layout import Layout
from wavalign_ext.speech.waveform import AudioError

Spec = Mapping[str, Any]
FOLDER = "features"


class Ears:
    """An encoder that encodes as a codec does; ``heard``: the last recording's vectors (frames, size)."""

    heard: torch.Tensor

    def __init__(self, spec: Spec, device: str | None = None) -> None:
        self.encoder = open_encoder(spec["encoder"], device)
        self.sample_rate, self.most = self.encoder.sample_rate, int(spec["most"])
        self.codec = load_codec(spec["codec"], device) if "codec" in spec else None
        self.codebook_size = 1 if self.codec is None else self.codec.codebook_size
        self._print: str | None = None

    def encode(self, wave: np.ndarray) -> list[int]:
        """A 0 for each vector, or the codec's codes.

        Raises:
            AudioError: too short or too long for the encoder or the layout, or another number of codes than of vectors.
        """
        try:
            frames = self.encoder.frames(len(wave))
            if frames > self.most:
                raise ValueError(f"{frames} vectors, the layout allows {self.most}")
            self.heard = self.encoder.encode(wave)
            codes = [0] * frames if self.codec is None else self._codes(wave)
            if abs(len(codes) - frames) > 1:  # 1: a resampled recording may end in another 80 ms
                raise ValueError(f"{len(codes)} codes for {frames} vectors")
        except ValueError as error:
            raise AudioError(f"{error}: cut it, or drop it") from error
        self.heard = self.heard[: len(codes)]
        return codes[:frames]

    def _codes(self, wave: np.ndarray) -> list[int]:
        """Of the codec, at its own sample rate."""
        import soxr

        assert self.codec is not None
        return self.codec.encode(soxr.resample(wave, self.sample_rate, self.codec.sample_rate))

    def fingerprint(self) -> str:
        """The encoder's, computed once."""
        if self._print is None:
            self._print = self.encoder.fingerprint()
        return self._print

    def save(self, path: Path) -> None:
        """Write ``heard``."""
        save_features(path, self.heard, self.encoder.name, self.fingerprint())


def open_encoder(spec: Spec, device: str | None = None) -> SpeechEncoder:
    """The encoder of ``{"type": name, **arguments}``; ``device`` stands in for the spec's.

    Raises:
        ValueError: it does not load, or it is asked to be trained.
    """
    arguments = dict(spec)
    if "trainable" in arguments:
        raise ValueError(
            "encoder: trainable is not supported: its vectors are computed once, and the projector behind it learns; "
            "take it out"
        )
    arguments["device"] = devices.choose(device or arguments.get("device") or "auto")
    try:
        return load_encoder(arguments)
    except TypeError as error:
        raise ValueError(f"encoder={dict(spec)}: {error}: correct its arguments") from error


def encoder_spec(layout: Layout, encoder: Spec | None, codec: Spec) -> dict[str, Any] | None:
    """The spec of the user's speech for ``layout``; None where that is tokens alone. ``codec`` makes these.

    Raises:
        ValueError: an encoder is given where the layout has none, or missing, or of another type or size.
    """
    facts, where = layout.encoder, f"layout {layout.name!r}"
    if facts is None:
        if encoder is not None:
            raise ValueError(f"{where} hears tokens, no encoder: take the encoder out")
        return None
    if encoder is None:
        raise ValueError(f"{where} hears through an encoder: give it, --encoder '{{type: {facts.type}, path: FOLDER}}'")
    if encoder.get("type") != facts.type:
        raise ValueError(f"{where} hears through {facts.type!r}, not {encoder.get('type')!r}: give its own encoder")
    found = open_encoder(encoder, "cpu")
    if found.size != facts.size:
        raise ValueError(
            f"the encoder {facts.type!r} has {found.size} numbers per vector and {where} {facts.size}: choose an "
            "encoder and a layout that belong together"
        )
    beside = {} if facts.placeholder is not None else {"codec": dict(codec)}
    return {"encoder": dict(encoder), "most": facts.most} | beside


def load_coder(spec: Spec) -> SpeechCodec | Ears:
    """The codec or the encoder of a role's spec. Raises as they do."""
    return Ears(spec) if "encoder" in spec else load_codec(spec)


def device_wanted(spec: Spec) -> str:
    """The device that a spec asks for."""
    return spec["encoder"].get("device") or "auto" if "encoder" in spec else device_of(spec) or "cpu"


def name_and_version(spec: Spec) -> tuple[str, int]:
    """What a role's codec or encoder is called, and the version of its code."""
    return (spec["encoder"]["type"], 1) if "encoder" in spec else (spec["type"], codec_version(spec))
