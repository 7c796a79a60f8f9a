"""The registry of reward terms."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from wavalign_ext.rewards.answer import SpokenAnswer


class TermFailed(Exception):
    """A term could not score an answer. Its score is then missing, never a number."""


class RewardTerm(Protocol):
    """Scores one answer on ``scale``."""

    async def score(self, answer: SpokenAnswer) -> float:
        """A number on the term's scale. Raises :class:`TermFailed` when it cannot tell."""
        ...


TermFactory = Callable[..., RewardTerm]
_TERMS: dict[str, TermFactory] = {}


def register_term(name: str) -> Callable[[TermFactory], TermFactory]:
    """Register a term class under ``wavalign.reward.terms.NAME``; it is built as ``factory(scale, **arguments)``.

    Raises:
        ValueError: the name is taken.
    """

    def register(factory: TermFactory) -> TermFactory:
        if name in _TERMS:
            raise ValueError(f"reward term {name!r} is registered already: choose another name")
        _TERMS[name] = factory
        return factory

    return register


def build_term(name: str, scale: tuple[float, float], arguments: Mapping[str, Any]) -> RewardTerm:
    """The term ``name``. Raises ValueError naming the known ones, or when it does not take an argument."""
    if name not in _TERMS:
        raise ValueError(f"reward term {name!r} is not known: one of {', '.join(sorted(_TERMS))}")
    try:
        return _TERMS[name](scale, **arguments)
    except TypeError as error:
        raise ValueError(f"reward term {name!r}: {error}") from error
