"""A reward term that gives few different scores and often none, for jobs in the tests: ``flaky:flaky``."""

import hashlib

from wavalign_ext.rewards import SpokenAnswer, TermFailed, register_term


@register_term("flaky")
class Flaky:
    """Scores the bottom or the top by the answer's codes; fails for a third of the answers."""

    def __init__(self, scale: tuple[float, float]) -> None:
        self.scale = scale

    async def score(self, answer: SpokenAnswer) -> float:
        number = hashlib.sha256(repr(answer.speech_codes).encode()).digest()[0] % 6
        if number < 2:
            raise TermFailed("no reply")
        return self.scale[number % 2]
