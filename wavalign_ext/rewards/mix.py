"""Several terms to one reward."""

import asyncio
import math
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wavalign_ext.rewards.answer import SpokenAnswer
from wavalign_ext.rewards.registry import RewardTerm, Scale, TermFailed, build_term

KEY = "wavalign.reward"
TIMEOUT_S = 120.0
T = TypeVar("T")


@dataclass(frozen=True)
class RewardResult:
    """``total`` is None when a term that counts is missing: fewer terms would be another scale, not comparable.

    ``reasons`` says why the total is missing, by term, and is empty when it is there; ``ignored`` says it of terms of
    weight 0. ``extras`` is what the terms found out on the way.
    """

    total: float | None
    terms: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)


async def attempt(work: Awaitable[T]) -> tuple[T | None, str]:
    """What ``work`` gives, or None and why it failed, in one line.

    One answer's failure must not end the run that paid for it, whatever is raised: libraries written in Rust panic with
    a BaseException, and one that calls ``sys.exit`` raises another. The end of the run itself passes: an interrupt, or
    a cancellation of the task that waits here.
    """
    try:
        return await work, ""
    except TermFailed as failure:
        reason = str(failure) or "the term failed and gave no reason"
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        reason = f"{type(error).__name__}: {error}"
    return None, " ".join(reason.split())


class RewardMix:
    """The weighted mean of its terms. Build it with :func:`build_terms`.

    A term that has scored no answer at all for ``timeout_s`` has failed for those that wait for it: answers queue for
    a model, and the last of many may wait long.
    """

    def __init__(
        self, terms: Mapping[str, RewardTerm], weights: Mapping[str, float], scale: Scale, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.terms, self.weights, self.scale, self.timeout_s = dict(terms), dict(weights), scale, timeout_s
        self._answered: dict[RewardTerm, float] = {}  # when a term last gave something, by the loop's clock

    async def __call__(self, answer: SpokenAnswer) -> RewardResult:
        """Score with every term at once. Never raises for a term's sake."""
        found = await asyncio.gather(*(self._score(term, answer) for term in self.terms.values()))
        scores = {name: score for name, (score, _) in zip(self.terms, found, strict=True)}
        failed = {name: why for name, (score, why) in zip(self.terms, found, strict=True) if score is None}
        reasons = {name: why for name, why in failed.items() if self.weights[name] > 0}
        ignored = {name: why for name, why in failed.items() if name not in reasons}
        total = None
        if not reasons:
            total = sum(self.weights[name] * score for name, score in scores.items() if score is not None)
            total = min(max(total, self.scale[0]), self.scale[1])  # normalised weights may sum to 1 + 1e-16
        return RewardResult(total, scores, reasons, ignored, dict(answer.notes))

    def unscored(self, cause: str, why: str) -> RewardResult:
        """The result for an answer that no term was asked about."""
        return RewardResult(None, dict.fromkeys(self.terms), {cause: why})

    async def _score(self, term: RewardTerm, answer: SpokenAnswer) -> tuple[float | None, str]:
        found, why = await self._in_time(term, answer)
        low, high = self.scale
        if found is not None and not low <= found <= high:
            return None, f"score {found} is outside the scale [{low}, {high}]"
        return found, why

    async def _in_time(self, term: RewardTerm, answer: SpokenAnswer) -> tuple[float | None, str]:
        """What :func:`attempt` says of the term, or that it is stuck."""
        clock = asyncio.get_running_loop().time
        began, task = clock(), asyncio.ensure_future(attempt(_as_number(term, answer)))
        try:
            while not task.done():
                left = max(began, self._answered.get(term, began)) + self.timeout_s - clock()
                if left <= 0:
                    return None, f"no answer for wavalign.reward.timeout_s={self.timeout_s:g}"
                await asyncio.wait([task], timeout=left)
            self._answered[term] = clock()
            return task.result()
        finally:
            task.cancel()


async def _as_number(term: RewardTerm, answer: SpokenAnswer) -> float:
    return float(await term.score(answer))


def build_terms(
    spec: Mapping[str, Mapping[str, Any]], scale: tuple[float, float] = (1.0, 5.0), timeout_s: float = TIMEOUT_S
) -> RewardMix:
    """Terms from ``{name: {weight, type, **arguments}}``; weights are divided by their sum.

    ``weight`` is 1 and ``type`` the name itself where they are left out. A term of weight 0 is scored and shown but
    does not count.

    Raises:
        ValueError: a scale that does not rise, no terms, an unknown one, a negative weight, all weights 0, or an
            argument that a term does not take.
        ImportError: a term needs a package that is not installed; the message names it.
    """
    scale = _checked_scale(scale)
    if not spec:
        raise ValueError(f"{KEY}.terms={spec!r} is not allowed: name at least one term with a weight")
    terms, weights = {}, {}
    for name, node in spec.items():
        if not isinstance(node, Mapping):
            raise ValueError(f"{KEY}.terms.{name}={node!r} is not allowed: a mapping such as {{weight: 1.0}}")
        arguments = {"weight": 1.0, "type": name, **node}
        weight, kind = arguments.pop("weight"), arguments.pop("type")
        if not _is_number(weight) or weight < 0:
            raise ValueError(f"{KEY}.terms.{name}.weight={weight!r} is not allowed: a number ≥ 0")
        terms[name], weights[name] = build_term(str(kind), scale, arguments), float(weight)
    total = sum(weights.values())
    if total <= 0:
        raise ValueError(f"{KEY}.terms: all weights are 0 ({', '.join(spec)}): give one term a positive weight")
    return RewardMix(terms, {name: weight / total for name, weight in weights.items()}, scale, timeout_s)


def _checked_scale(scale: Any) -> Scale:
    pair = tuple(scale)
    if len(pair) != 2 or not all(map(_is_number, pair)) or not pair[0] < pair[1]:
        raise ValueError(f"{KEY}.scale={scale!r} is not allowed: [low, high], two numbers with low < high")
    return float(pair[0]), float(pair[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
