"""A reward term: short answers."""

from wavalign_ext.rewards import SpokenAnswer, register_term
from wavalign_ext.rewards.registry import on_scale

Scale = tuple[float, float]


@register_term("brevity")
class Brevity:
    """The top of the scale up to ``words`` words, then less with each one more; no words are the bottom."""

    def __init__(self, scale: Scale, words: int = 8) -> None:
        if words < 1:
            raise ValueError(f"brevity words={words!r} is not allowed: a number of at least 1")
        self.scale, self.words = scale, words

    async def score(self, answer: SpokenAnswer) -> float:
        """Notes ``words``."""
        count = len(answer.text.split())
        answer.notes["words"] = count
        return on_scale(min(1.0, self.words / count) if count else 0.0, self.scale)
