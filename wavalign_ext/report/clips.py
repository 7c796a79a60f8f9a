"""Recordings as MP3 in base64, each once, until the page's budget is spent."""

import base64
import io
from pathlib import Path

import numpy as np

# MP3: every browser plays it, libsndfile writes it, and speech takes 4 kB/s. FLAC where libsndfile was built without.
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
SPEECH_RATE = 24000
LONGEST_S = 60
SMALLEST = 0.9  # LAME's scale of 0 to 1; 1 is audibly worse


class Clips:
    """``data`` maps an id to base64. Counts what was left out: ``unreadable``, ``beyond_budget``, ``cut``."""

    def __init__(self, budget: int) -> None:
        import soundfile

        self.left = budget
        self.mp3 = "MP3" in soundfile.available_formats()
        self.mime = "audio/mpeg" if self.mp3 else "audio/flac"
        self.data: dict[str, str] = {}
        self.unreadable = self.beyond_budget = self.cut = 0
        self._ids: dict[Path, str | None] = {}

    def add(self, path: Path | None) -> str | None:
        """The id of a recording; None when it has none, cannot be read, or no longer fits."""
        if path is None:
            return None
        if path not in self._ids:
            self._ids[path] = self._encode(path)
        return self._ids[path]

    def _encode(self, path: Path) -> str | None:
        if self.left <= 0:
            self.beyond_budget += 1
            return None
        try:
            text = base64.b64encode(self._compressed(path)).decode()
        except (OSError, RuntimeError, ValueError):  # soundfile's errors are RuntimeErrors
            self.unreadable += 1
            return None
        if len(text) > self.left:
            self.beyond_budget += 1
            self.left = 0  # later clips must not slip in, or it would be chance which are there
            return None
        self.left -= len(text)
        name = str(len(self.data))
        self.data[name] = text
        return name

    def _compressed(self, path: Path) -> bytes:
        import soundfile
        import soxr

        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            wave = file.read(rate * LONGEST_S, dtype="float32", always_2d=True).mean(axis=1)
            self.cut += file.frames > rate * LONGEST_S
        if not len(wave) or not np.isfinite(wave).all():
            raise ValueError(f"{path} has no sound")
        if rate > SPEECH_RATE or rate not in MP3_RATES:
            wave, rate = soxr.resample(wave, rate, SPEECH_RATE), SPEECH_RATE
        out = io.BytesIO()
        if self.mp3:
            soundfile.write(out, wave, rate, format="MP3", compression_level=SMALLEST, bitrate_mode="VARIABLE")
        else:
            soundfile.write(out, wave, rate, format="FLAC", subtype="PCM_16")
        return out.getvalue()
