"""The pair that a row of the data holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ANSWERS = ("target", "chosen", "rejected")
PAIR_SCORES = ("chosen_score", "rejected_score")
Answer = tuple[str, list[int]]  # text and codes


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt, and their scores, NaN where the row has none."""

    chosen: Answer
    rejected: Answer
    scores: tuple[float, float] = (math.nan, math.nan)


def answer_pair(row: Mapping[str, Any]) -> AnswerPair | None:
    """The pair of a row; None where it has none. A row without ``chosen_text`` has its target as the better answer."""

    def answer(name: str) -> Answer | None:
        text, codes = row.get(f"{name}_text"), row.get(f"{name}_speech")
        return None if text is None or codes is None else (text, list(codes))

    chosen, rejected = answer("chosen") or answer("target"), answer("rejected")
    if chosen is None or rejected is None:
        return None
    first, second = (math.nan if (score := row.get(name)) is None else float(score) for name in PAIR_SCORES)
    return AnswerPair(chosen, rejected, (first, second))
