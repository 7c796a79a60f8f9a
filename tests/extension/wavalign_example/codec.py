"""A speech codec: each code is a short tone. It carries no speech, and shows what a codec must have."""

from collections.abc import Sequence

import numpy as np

from wavalign_ext.speech.codecs import register_codec


@register_codec("tones")
class Tones:
    """``codes`` pitches between 100 and 4000 Hz, ``frame_rate`` of them a second, at 16 kHz."""

    sample_rate, LOW_HZ, HIGH_HZ = 16000, 100.0, 4000.0

    def __init__(self, codes: int = 512, frame_rate: float = 12.5) -> None:
        self.codebook_size, self.frame_rate = codes, frame_rate
        self.samples = round(self.sample_rate / frame_rate)
        self.pitches = np.geomspace(self.LOW_HZ, self.HIGH_HZ, codes)

    def encode(self, wave: np.ndarray) -> list[int]:
        """The code nearest to the strongest pitch of each frame."""
        frames = np.asarray(wave, dtype=np.float32)[: len(wave) // self.samples * self.samples]
        spectra = np.abs(np.fft.rfft(frames.reshape(-1, self.samples), axis=1))
        strongest = spectra[:, 1:].argmax(1) + 1
        pitch = strongest * self.sample_rate / self.samples
        return [int(np.abs(self.pitches - one).argmin()) for one in pitch]

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """One tone after another."""
        time = np.arange(self.samples) / self.sample_rate
        parts = [0.3 * np.sin(2 * np.pi * self.pitches[code] * time) for code in codes]
        return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, dtype=np.float32)
