"""Terms that score nothing, step after step: a judge whose key is refused, an endpoint that is gone.

A missing score is no error by itself, but a step without any trains on the anchor alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SHOWN = 300  # characters of a reason


class TermSilent(RuntimeError):
    """A term that counts has scored no rollout for as many steps as are allowed."""


class SilenceCount:
    """Counts, for each of ``terms``, the steps in a row in which it scored no rollout.

    Give it the terms that count (a weight above 0), and each step's ``reward_extra_info``.
    """

    def __init__(self, terms: Iterable[str], most_steps: int) -> None:
        if most_steps < 1:
            raise ValueError(f"most_steps={most_steps!r} is not allowed: a whole number ≥ 1")
        self.most_steps = most_steps
        self.steps = dict.fromkeys(terms, 0)

    def observe(self, answers: Sequence[Mapping[str, Any]]) -> list[str]:
        """A line for each term whose silence begins with this step; a step without rollouts counts for nothing.

        Raises:
            TermSilent: a term has been silent for ``most_steps`` steps; the message quotes its last reason.
        """
        begun = []
        for term in self.steps if answers else ():
            silent = all(answer.get(f"score_{term}") is None for answer in answers)
            self.steps[term] = self.steps[term] + 1 if silent else 0
            if not silent:
                continue
            line = f"reward term {term!r} scored none of {len(answers)} rollouts: {_reason(term, answers)}"
            if self.steps[term] >= self.most_steps:
                raise TermSilent(f"{line}; so it was for {self.steps[term]} step(s): mend the term, then resume")
            if self.steps[term] == 1:
                begun.append(line)
        return begun


def _reason(term: str, answers: Sequence[Mapping[str, Any]]) -> str:
    for answer in answers:
        _, named, reason = f"; {answer.get('missing') or ''}".partition(f"; {term}: ")
        if named:
            return " ".join(reason.split())[:SHOWN]
    return "no reason was given"
