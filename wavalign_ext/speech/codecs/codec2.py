"""Codec 2 at 700 bit/s (mode 700C): fixed codebooks, no weights, 8 kHz; telephone quality."""

from collections.abc import Sequence

import numpy as np

from wavalign_ext.speech.codecs.base import register_codec
from wavalign_ext.speech.codecs.codebook_stream import CodeStreams


@register_codec("codec2")
class Codec2:
    """25 frames per second of three codes: 9, 9 and 10 bits, as a stream of 75 codes per second out of 2048.

    Decoding draws random phases: the same codes sound the same, but their samples differ. Raises ImportError without
    the package pycodec2.
    """

    MODE, BITS, SAMPLES = 700, (9, 9, 10), 320

    def __init__(self) -> None:
        try:
            import pycodec2  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("codec 'codec2' needs pycodec2: pip install pycodec2") from error
        self._new = pycodec2.Codec2  # pyright: ignore[reportAttributeAccessIssue]  (a compiled module)
        self.streams = CodeStreams([2**bits for bits in self.BITS])
        self.sample_rate, self.codebook_size = 8000, self.streams.size
        self.frame_rate = len(self.BITS) * self.sample_rate / self.SAMPLES

    def encode(self, wave: np.ndarray) -> list[int]:
        """Three codes per 40 ms; the last frame is filled with silence."""
        samples = (np.clip(wave, -1, 1) * 32767).astype(np.int16)
        samples = np.pad(samples, (0, -len(samples) % self.SAMPLES)).reshape(-1, self.SAMPLES)
        coder = self._new(self.MODE)  # a new one per utterance: it remembers what came before
        return self.streams.join(_numbers(coder.encode(frame), self.BITS) for frame in samples)

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """See :class:`wavalign_ext.speech.codecs.base.SpeechCodec`; frames that are not whole are left out."""
        coder = self._new(self.MODE)
        frames = [coder.decode(_packed(frame, self.BITS)) for frame in self.streams.split(codes)]
        return np.concatenate([np.zeros(0, np.int16), *frames]).astype(np.float32) / 32768


def _numbers(packed: bytes, bits: Sequence[int]) -> list[int]:
    """The numbers of ``bits`` bits each that ``packed`` begins with, most significant bit first."""
    text, numbers = "".join(f"{byte:08b}" for byte in packed), []
    for width in bits:
        numbers.append(int(text[:width], 2))
        text = text[width:]
    return numbers


def _packed(numbers: Sequence[int], bits: Sequence[int]) -> bytes:
    text = "".join(f"{number:0{width}b}" for number, width in zip(numbers, bits, strict=True))
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
