"""Speech from codes by unit selection: recorded pieces, chosen so that they join well, and cross-faded.

Hunt and Black, "Unit selection in a concatenative speech synthesis system using a large speech database", ICASSP 1996.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

CANDIDATES = 30  # of a code, those that stood between the same codes first
FADE = 80  # samples on either side of a join
RECORDED = -0.05  # the cost of two pieces that follow each other in a recording


class UnitSelection:
    """Recordings cut into one piece for each code.

    Args:
        samples: int16 (S,), all recordings end to end.
        lengths: int (R,), samples of each recording.
        codes: int (N,), the codes of all recordings end to end, ``hop`` samples each.
        counts: int (R,), codes of each recording.
        edges: float (N, F), the spectrum where each piece begins: pieces join well where the piece that followed the
            first begins as the second does.
        hop: samples of a piece.
    """

    def __init__(
        self,
        samples: np.ndarray,
        lengths: np.ndarray,
        codes: np.ndarray,
        counts: np.ndarray,
        edges: np.ndarray,
        hop: int,
    ) -> None:
        self.hop, self.codes, self.edges = hop, codes, edges.astype(np.float32)
        ends = np.cumsum(counts)
        self.last = np.zeros(len(codes), dtype=bool)
        self.last[ends - 1] = True
        within = np.arange(len(codes)) - np.repeat(ends - counts, counts)
        room = (
            FADE + hop + 512
        )  # silence before and after each recording: a piece at its edge has something to fade into
        padded = lengths + 2 * room
        self.samples = np.zeros(padded.sum(), dtype=np.float32)
        for out, begin, length in zip(np.cumsum(padded) - padded, np.cumsum(lengths) - lengths, lengths, strict=True):
            self.samples[out + room : out + room + length] = samples[begin : begin + length] / 32768
        self.starts = np.repeat(np.cumsum(padded) - padded + room, counts) + within * hop
        self.places: dict[int, list[int]] = defaultdict(list)
        for place, code in enumerate(codes.tolist()):
            self.places[code].append(place)

    def __call__(self, codes: Sequence[int]) -> np.ndarray:
        """float32 (len(codes) · hop,); a code that no recording has is silence."""
        return self._join(self._choose(list(codes)))

    def _candidates(self, codes: list[int], number: int) -> np.ndarray:
        found = np.array(self.places.get(codes[number], [-1]))
        if len(found) <= CANDIDATES:
            return found
        fits = np.zeros(len(found), dtype=int)
        if number:
            fits += self.codes[np.maximum(found - 1, 0)] == codes[number - 1]
        if number + 1 < len(codes):
            fits += self.codes[np.minimum(found + 1, len(self.codes) - 1)] == codes[number + 1]
        return found[np.argsort(-fits, kind="stable")[:CANDIDATES]]

    def _choose(self, codes: list[int]) -> list[int]:
        """The cheapest way through the candidates of all codes, by dynamic programming; -1 is silence."""
        candidates = [self._candidates(codes, number) for number in range(len(codes))]
        cost, back = np.zeros(len(candidates[0])), []
        for before, after in zip(candidates, candidates[1:], strict=False):
            followed = np.where(self.last[before], before, before + 1)
            join = ((self.edges[followed][:, None] - self.edges[after][None]) ** 2).mean(-1)
            join[(before[:, None] + 1 == after) & ~self.last[before][:, None]] = RECORDED
            total = cost[:, None] + join
            back.append(total.argmin(0))
            cost = total.min(0)
        way = [int(cost.argmin())]
        for came_from in reversed(back):
            way.append(int(came_from[way[-1]]))
        return [int(found[n]) for found, n in zip(candidates, reversed(way), strict=True)]

    def _join(self, places: list[int]) -> np.ndarray:
        """Runs that were recorded together stay whole; between them one fades out while the next fades in."""
        out = np.zeros(len(places) * self.hop + 2 * FADE, dtype=np.float32)
        weight = np.full_like(out, 1e-3)
        ramp = np.linspace(0, 1, 2 * FADE, dtype=np.float32)
        first = 0
        while first < len(places):
            last = first
            while last + 1 < len(places) and places[last + 1] == places[last] + 1 and not self.last[places[last]]:
                last += 1
            run = (last + 1 - first) * self.hop + 2 * FADE
            fade = np.ones(run, dtype=np.float32)
            fade[: 2 * FADE], fade[-2 * FADE :] = ramp, ramp[::-1]
            at, begin = first * self.hop, self.starts[places[first]] - FADE
            if places[first] >= 0:
                out[at : at + run] += self.samples[begin : begin + run] * fade
            weight[at : at + run] += fade
            first = last + 1
        return (out / np.maximum(weight, 1e-3))[FADE:-FADE]
