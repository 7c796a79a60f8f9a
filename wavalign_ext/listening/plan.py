"""Which answers are compared, and what each listener hears when and on which side.

Every listener gets every pair once, in an order of his own. Sides are balanced twice over: for each listener the first
model is on the left in half of his pairs, and for each pair it is on the left for every second listener.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

ASPECTS = ("helpfulness", "naturalness", "overall")  # what the paper's listeners were asked (arXiv 2604.14932)
VOTES = ("left", "tie", "right")


@dataclass(frozen=True)
class Pair:
    """Answers of models A and B to one question; paths of recordings below the test's folder.

    A check has the same answer on both sides, ``audio_b`` spoilt: whoever listens prefers A.
    """

    id: str
    question: str | None
    question_audio: str | None
    text_a: str
    audio_a: str
    text_b: str
    audio_b: str
    category: str = "all"
    check: bool = False


@dataclass(frozen=True)
class Trial:
    """One comparison of one listener: ``number`` from 0 in his order, ``a_left`` whether model A is on the left."""

    number: int
    pair: str
    a_left: bool


def trials(pairs: Sequence[Pair], listener: int, seed: int = 0) -> list[Trial]:
    """The trials of a listener, counted from 0; the same whenever it is asked.

    Pairs are split in two halves of the same size (±1); the halves change sides from one listener to the next.
    """
    real, checks = [[pair.id for pair in pairs if pair.check == kind] for kind in (False, True)]
    left: dict[str, bool] = {}
    for place, group in enumerate((real, checks)):
        shuffled = list(group)
        random.Random(f"{seed},{place}").shuffle(shuffled)
        left |= {pair: (rank + listener) % 2 == 0 for rank, pair in enumerate(shuffled)}
    own = random.Random(f"{seed},listener {listener}")
    own.shuffle(real)
    own.shuffle(checks)
    # A check in each stretch of the test, never the first trial.
    order, stretch = list(real), max(1, len(real) // (len(checks) or 1))
    for number, check in enumerate(checks):
        start = number * (stretch + 1)
        order.insert(min(len(order), own.randrange(start + 1, start + stretch + 1)), check)
    return [Trial(number, pair, left[pair]) for number, pair in enumerate(order)]


def winner(trial: Trial, vote: str) -> str:
    """``a``, ``b`` or ``tie`` for a vote of left, right or tie."""
    if vote == "tie":
        return "tie"
    return "a" if (vote == "left") == trial.a_left else "b"
