"""A reward term that is sometimes a random number: how much does a method lose by it?"""

import hashlib
import random
from collections.abc import Mapping
from typing import Any

from wavalign_ext.rewards import SpokenAnswer, TermFailed, build_terms, register_term


@register_term("noisy")
class Noisy:
    """The reward of ``terms``, but a uniform number of the scale for a ``share`` of the answers.

    Which answers are hit depends on the answer and the seed alone, so that a run can be repeated.
    """

    def __init__(self, scale: tuple[float, float], terms: Mapping[str, Any], share: float, seed: int = 0) -> None:
        self.scale, self.share, self.seed = scale, share, seed
        self.mix = build_terms(terms, scale)

    async def score(self, answer: SpokenAnswer) -> float:
        """Raises :class:`TermFailed` where the reward of ``terms`` is missing."""
        said = f"{self.seed} {answer.question_text} {answer.text} {answer.speech_codes}"
        rng = random.Random(hashlib.sha256(said.encode()).digest())
        if rng.random() < self.share:
            return rng.uniform(*self.scale)
        result = await self.mix(answer)
        if result.total is None:
            raise TermFailed("; ".join(result.reasons.values()))
        return result.total
