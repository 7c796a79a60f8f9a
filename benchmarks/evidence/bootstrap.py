"""Intervals: resample seeds, then the questions, which are the same for every recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval and how many seeds and answers it is made from."""

    mean: float
    low: float
    high: float
    seeds: int
    answers: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Estimate:
    """Mean over everything. ``values``: per seed an array (questions,) of the same questions in order; NaN is missing.

    A draw takes as many seeds with replacement, and for each the same redrawn questions.
    """
    table_SQ = np.stack(values)
    rng = np.random.default_rng(seed)
    seeds, questions = table_SQ.shape
    means = [
        np.nanmean(table_SQ[rng.integers(seeds, size=seeds)][:, rng.integers(questions, size=questions)])
        for _ in range(draws)
    ]
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(np.nanmean(table_SQ)), float(low), float(high), seeds, int((~np.isnan(table_SQ)).sum()))
