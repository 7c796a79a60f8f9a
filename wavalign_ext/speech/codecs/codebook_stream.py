"""Several codebooks as one stream of codes: frame after frame, in a frame codebook after codebook."""

from collections.abc import Iterable, Sequence

import numpy as np


class CodeStreams:
    """K codebooks of ``sizes`` codes; each has a range of the stream's codes to itself, so a code tells its codebook.

    Two codebooks of 512 and 1024: a frame (3, 7) is the codes 3, 512 + 7; ``size`` is 1536.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)

    @property
    def size(self) -> int:
        """How many codes the stream has."""
        return int(self.starts[-1])

    def join(self, frames: Iterable[Sequence[int]]) -> list[int]:
        """Frames (T, K) as a stream (T · K,)."""
        return [int(start + code) for frame in frames for start, code in zip(self.starts, frame, strict=False)]

    def split(self, codes: Sequence[int]) -> np.ndarray:
        """A stream as frames (T, K), for anything that a model may say.

        A code whose codebook is not due is left out, and so is a frame that does not become whole; the first codebook
        always begins a frame. So one wrong code costs one frame.

        Raises:
            ValueError: a code that no codebook has.
        """
        last, frames, frame = len(self.starts) - 1, [], []
        for code in codes:
            if not 0 <= code < self.size:
                raise ValueError(f"code {code} is out of range: this codec has codes 0 to {self.size - 1}")
            book = int(np.searchsorted(self.starts, code, side="right")) - 1
            if book == 0:
                frame = []
            if book == len(frame):
                frame.append(int(code - self.starts[book]))
                if len(frame) == last:
                    frames.append(frame)
                    frame = []
        return np.array(frames, dtype=np.int64).reshape(-1, last)
