"""What a line gives as a recording: a path, a file's bytes, base64, an array. One file, or its bytes, come of it."""

import base64
import binascii
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import numpy as np

from wavalign_ext.speech.waveform import AudioError

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:(?=//)|data:", re.ASCII)
MOST_CHANNELS = 32


def locate(source: Any, root: Path) -> str | bytes:
    """The path of a clip's file, or the file's bytes; ``source`` is what :class:`dialogue.Clip` says.

    Raises:
        AudioError: no file of this machine, broken base64, or an array that is no recording.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, Mapping):
        if source.get("array") is not None:
            return _wav(source["array"], source.get("sampling_rate", source.get("sample_rate")))
        data = source["bytes"]
        return _base64(data) if isinstance(data, str) else data
    scheme = _SCHEME.match(source)
    if scheme is None:
        return str(root / source)
    if scheme[0] == "data:":
        head, comma, body = source.partition(",")
        if not comma:
            raise AudioError("is a data: URL without data: save it as a file and give its path")
        return _base64(body) if head.endswith(";base64") else unquote_to_bytes(body)
    if scheme[0].lower() == "file:":
        return url2pathname(urlsplit(source).path)
    raise AudioError(f"is a {scheme[0]} URL: nothing is downloaded: save it as a file and give its path")


def _base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError(f"is no base64 ({error}): save it as a file and give its path") from error


def _wav(array: Any, rate: Any) -> bytes:
    """A WAV file of float32 of samples (T,), (T, channels) or (channels, T), whichever of the two is longer."""
    import soundfile

    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 2**31 or rate != int(rate):
        raise AudioError(f"is an array whose sampling_rate is {rate!r}: give samples a second, as 16000")
    try:
        wave = np.asarray(array)
        samples = wave.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise AudioError(f"is an array of other things than numbers ({error}): give samples") from error
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > MOST_CHANNELS):
        raise AudioError(f"is an array of shape {wave.shape}: give (samples,) or (samples, channels)")
    if np.issubdtype(wave.dtype, np.integer) and samples.size and np.abs(samples).max() > 1:
        samples = samples / (2.0**15 if np.abs(samples).max() <= 2**15 else 2.0**31)  # 16 or 32 bits
    file = io.BytesIO()
    soundfile.write(file, samples, int(rate), format="WAV", subtype="FLOAT")
    return file.getvalue()
