"""The registry of reward terms, and the scale they share."""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from wavalign_ext.rewards.answer import SpokenAnswer

Scale = tuple[float, float]


class TermFailed(Exception):
    """A term could not score an answer. Its score is then missing, never a number."""


class RewardTerm(Protocol):
    """Scores one answer on ``scale``."""

    async def score(self, answer: SpokenAnswer) -> float:
        """A number on the term's scale. Raises :class:`TermFailed` when it cannot tell."""
        ...


TermFactory = Callable[..., RewardTerm]
Factory = TypeVar("Factory", bound=TermFactory)
_TERMS: dict[str, TermFactory] = {}


def on_scale(share: float, scale: Scale) -> float:
    """``share`` in [0, 1] as a point of ``scale``; a share beyond is clipped.

    Raises:
        TermFailed: the share is not a number.
    """
    if math.isnan(share):
        raise TermFailed("the measurement is not a number")
    low, high = scale
    return low + (high - low) * min(max(share, 0.0), 1.0)


def register_term(name: str) -> Callable[[Factory], Factory]:
    """Register a term class under ``wavalign.reward.terms.NAME``; it is built as ``factory(scale, **arguments)``.

    Raises:
        ValueError: the name is taken, or has a colon.
    """
    if not name or ":" in name:
        raise ValueError(f"reward term name {name!r} is not allowed: a name without a colon")

    def register(factory: Factory) -> Factory:
        if name in _TERMS:
            raise ValueError(f"reward term {name!r} is registered already: choose another name")
        _TERMS[name] = factory
        return factory

    return register


def build_term(kind: str, scale: Scale, arguments: Mapping[str, Any]) -> RewardTerm:
    """The term registered as ``kind``, or, for ``"package.module:name"``, as ``name`` once that module is imported.

    Raises:
        ValueError: no such term, or an argument that it does not take or lacks.
        ImportError: the module, or a package that the term needs, is not installed.
    """
    module, _, name = kind.rpartition(":")
    if module:
        importlib.import_module(module)
    if name not in _TERMS:
        known = ", ".join(sorted(_TERMS))
        raise ValueError(
            f"reward term {kind!r} is not known: one of {known}, or 'package.module:name' for a term of your own"
        )
    factory = _TERMS[name]
    signature = inspect.signature(factory)
    try:
        signature.bind(scale, **arguments)
    except TypeError as error:
        taken = ", ".join(list(signature.parameters)[1:]) or "none"
        raise ValueError(f"reward term {kind!r}: {error}; its arguments are: {taken}") from None
    return factory(scale, **arguments)
