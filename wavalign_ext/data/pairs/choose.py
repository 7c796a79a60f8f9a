"""Which answers of a prompt make pairs, and how the pairs are balanced."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wavalign_ext.data.pairs.candidates import Candidate, Prompt

REASONS = ("unscored", "tied", "below_gap")


@dataclass(frozen=True)
class ScoreMode:
    """How a candidate's scores become one: by ``weights``, or their plain sum where these are None."""

    weights: Mapping[str, float] | None = None

    def __call__(self, candidate: Candidate) -> float:
        """NaN where a score that counts is missing.

        Raises:
            ValueError: no candidate has a score of this name.
        """
        weights = dict.fromkeys(candidate.scores, 1.0) if self.weights is None else self.weights
        unknown = [name for name in weights if name not in candidate.scores]
        if unknown:
            raise ValueError(f"no score is named {unknown[0]!r}: there are {', '.join(candidate.scores)}")
        return sum(weight * candidate.scores[name] for name, weight in weights.items())


@dataclass(frozen=True)
class ChosenPair:
    """Two answers to one prompt and the scores that order them."""

    prompt: Prompt
    chosen: Candidate
    rejected: Candidate
    chosen_score: float
    rejected_score: float

    @property
    def gap(self) -> float:
        """By how much the better answer is better."""
        return self.chosen_score - self.rejected_score


def choose(prompt: Prompt, mode: ScoreMode, min_gap: float, most: int) -> tuple[list[ChosenPair], str | None]:
    """At most ``most`` pairs: best against worst, second best against second worst, and so on, while the gap lasts.

    Of equal scores the smaller name comes first, and of equal answers only the first takes part. Without a pair, the
    second value is one of ``REASONS``.
    """
    scored: dict[Any, tuple[float, Candidate]] = {}
    for candidate in sorted(prompt.candidates, key=lambda one: one.name):
        if not math.isnan(score := mode(candidate)):
            scored.setdefault(candidate.said, (score, candidate))
    ranked = sorted(scored.values(), key=lambda pair: (-pair[0], pair[1].name))
    if len(ranked) < 2:
        return [], "unscored"
    pairs = []
    for (best, chosen), (worst, rejected) in zip(ranked[: min(most, len(ranked) // 2)], ranked[::-1], strict=False):
        if best > worst and best - worst >= min_gap:
            pairs.append(ChosenPair(prompt, chosen, rejected, best, worst))
    if pairs:
        return pairs, None
    return [], "tied" if ranked[0][0] == ranked[-1][0] else "below_gap"


def balance(pairs: Sequence[ChosenPair]) -> dict[str, Any]:
    """What the two sides differ in beside the score: an objective learns that too.

    Shares of pairs whose better answer is longer, in words and, where there are codes, in speech; mean lengths and
    scores; how often each source's answers are the better and the worse ones.
    """
    if not pairs:
        return {"pairs": 0}

    def mean(values: Sequence[float]) -> float:
        return round(sum(values) / len(values), 4)

    def sides(measure: Any) -> dict[str, float]:
        both = [(measure(pair.chosen), measure(pair.rejected)) for pair in pairs]
        longer = mean([0.5 if a == b else float(a > b) for a, b in both])
        return {"chosen": mean([a for a, _ in both]), "rejected": mean([b for _, b in both]), "chosen_longer": longer}

    report: dict[str, Any] = {
        "pairs": len(pairs),
        "prompts": len({pair.prompt.key for pair in pairs}),
        "score": {"chosen": mean([p.chosen_score for p in pairs]), "rejected": mean([p.rejected_score for p in pairs])},
        "gap": {"mean": mean([p.gap for p in pairs]), "least": min(p.gap for p in pairs)},
        "words": sides(lambda one: len(one.text.split())),
    }
    if all(pair.chosen.codes and pair.rejected.codes for pair in pairs):
        report["codes"] = sides(lambda one: len(one.codes))
    chosen, rejected = (Counter(getattr(p, side).name for p in pairs) for side in ("chosen", "rejected"))
    if len(set(chosen) | set(rejected)) <= 20:  # names of systems, not of single answers
        names = sorted({*chosen, *rejected})
        report["sources"] = {name: {"chosen": chosen[name], "rejected": rejected[name]} for name in names}
    return report
