"""The codec of models that answer in text alone."""

from collections.abc import Sequence

import numpy as np

from wavalign_ext.speech.codecs.base import register_codec


@register_codec("none")
class NoSpeech:
    """It has no codes, so it fits layouts with ``speech: null`` alone; ``sample_rate`` is of what rewards hear."""

    frame_rate, codebook_size = 1.0, 0

    def __init__(self, sample_rate: int = 16000) -> None:
        self.sample_rate = sample_rate

    def encode(self, wave: np.ndarray) -> list[int]:
        """Raises ValueError: there is nothing to encode a recording with."""
        raise ValueError("the codec 'none' has no codes: leave recordings of answers out, or choose a codec")

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """No samples for no codes. Raises ValueError: there are codes."""
        if codes:
            raise ValueError(f"the codec 'none' has no code {codes[0]}")
        return np.zeros(0, dtype=np.float32)
