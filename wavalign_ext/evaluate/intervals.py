"""Means, paired differences and win rates with bootstrap intervals in which the answers to one question stay together.

Answers to the same question with other seeds are alike, so questions are what is drawn again (a cluster bootstrap:
Davison and Hinkley, Bootstrap Methods and their Application, 3.8): more seeds make each question's mean steadier, but
do not pass for more questions. Letters in shapes: Q questions, S seeds, B bootstrap draws.
"""

from dataclasses import dataclass

import numpy as np

DRAWS, LEVEL, SEED = 2000, 0.95, 0


@dataclass(frozen=True)
class Estimate:
    """A value with its interval (both NaN with fewer than two questions), over ``questions`` and ``answers``."""

    value: float
    low: float
    high: float
    questions: int
    answers: int


def mean(values_QS: np.ndarray) -> Estimate:
    """The mean of all answers that have a value; NaN is one that has none."""
    known = ~np.isnan(values_QS)
    sums_Q, counts_Q = np.where(known, values_QS, 0.0).sum(1), known.sum(1)
    kept = counts_Q > 0
    return _ratio(sums_Q[kept], counts_Q[kept])


def difference(values_QS: np.ndarray, base_QS: np.ndarray) -> Estimate:
    """The mean of value − base over pairs of the same question and seed; a pair that lacks one of the two is left out.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(values_QS, base_QS)
    return mean(values_QS - base_QS)


def win_rate(values_QS: np.ndarray, base_QS: np.ndarray) -> Estimate:
    """The share of pairs in which the value is above the base, a tie being half of one; raises as difference."""
    _check_shapes(values_QS, base_QS)
    return mean(0.5 + 0.5 * np.sign(values_QS - base_QS))


def _check_shapes(values_QS: np.ndarray, base_QS: np.ndarray) -> None:
    if values_QS.shape != base_QS.shape:
        raise ValueError(f"shapes {values_QS.shape} and {base_QS.shape} are no pairs: ask both the same questions")


def _ratio(sums_Q: np.ndarray, counts_Q: np.ndarray) -> Estimate:
    questions, answers = len(sums_Q), int(counts_Q.sum())
    if not questions:
        return Estimate(np.nan, np.nan, np.nan, 0, 0)
    value = float(sums_Q.sum() / answers)
    if questions < 2:
        return Estimate(value, np.nan, np.nan, questions, answers)
    drawn_BQ = np.random.default_rng(SEED).integers(0, questions, (DRAWS, questions))
    means_B = sums_Q[drawn_BQ].sum(1) / counts_Q[drawn_BQ].sum(1)
    low, high = np.quantile(means_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), questions, answers)
