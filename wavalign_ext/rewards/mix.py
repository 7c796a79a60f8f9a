"""Several terms to one reward."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wavalign_ext.rewards import terms as _terms  # noqa: F401  (registers the terms of this package)
from wavalign_ext.rewards.answer import SpokenAnswer
from wavalign_ext.rewards.registry import RewardTerm, TermFailed, build_term


@dataclass(frozen=True)
class RewardResult:
    """``total`` is None when a term that counts is missing: fewer terms would be another scale, not comparable.

    ``reasons`` says of each missing term why; ``extras`` is what the terms found out on the way.
    """

    total: float | None
    terms: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)


class RewardMix:
    """The weighted mean of its terms. Build it with :func:`build_terms`."""

    def __init__(
        self, terms: Mapping[str, RewardTerm], weights: Mapping[str, float], scale: tuple[float, float]
    ) -> None:
        self.terms, self.weights, self.scale = dict(terms), dict(weights), scale

    async def __call__(self, answer: SpokenAnswer) -> RewardResult:
        """Score with every term at once. Never raises for a term's sake."""
        found = await asyncio.gather(*(self._score(term, answer) for term in self.terms.values()))
        scores = {name: score for name, (score, _) in zip(self.terms, found, strict=True)}
        reasons = {name: why for name, (_, why) in zip(self.terms, found, strict=True) if why}
        counted = {name: score for name, score in scores.items() if self.weights[name] > 0}
        total = None
        if all(score is not None for score in counted.values()):
            total = sum(self.weights[name] * score for name, score in counted.items() if score is not None)
        return RewardResult(total, scores, reasons, dict(answer.notes))

    async def _score(self, term: RewardTerm, answer: SpokenAnswer) -> tuple[float | None, str]:
        low, high = self.scale
        try:
            score = float(await term.score(answer))
        except TermFailed as failure:
            return None, str(failure)
        except Exception as error:  # a term of a user's own must not end a run that paid for the rollout
            return None, f"{type(error).__name__}: {error}"
        if math.isnan(score) or not low <= score <= high:
            return None, f"score {score} is outside the scale [{low}, {high}]"
        return score, ""


def build_terms(spec: Mapping[str, Mapping[str, Any]], scale: tuple[float, float] = (1.0, 5.0)) -> RewardMix:
    """Terms from ``{name: {weight, **arguments}}``; weights are divided by their sum.

    Raises:
        ValueError: no terms, an unknown one, a negative weight, all weights 0, or an argument a term does not take.
    """
    if not spec:
        raise ValueError("wavalign.reward.terms is empty: name at least one term with a weight")
    terms, weights = {}, {}
    for name, node in spec.items():
        arguments = dict(node)
        weight = arguments.pop("weight", 1.0)
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"wavalign.reward.terms.{name}.weight={weight!r} is not allowed: a number ≥ 0")
        terms[name], weights[name] = build_term(name, scale, arguments), float(weight)
    total = sum(weights.values())
    if total <= 0:
        raise ValueError("wavalign.reward.terms: all weights are 0: give one term a positive weight")
    return RewardMix(terms, {name: weight / total for name, weight in weights.items()}, scale)
