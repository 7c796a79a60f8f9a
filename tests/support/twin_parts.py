"""What a twin's job needs in every process of verl: a codec, a reward and a record of the sampled ids.

Named by ``VERL_USE_EXTERNAL_MODULES=twin_parts`` with this folder on ``PYTHONPATH``.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from wavalign_ext.rewards import SpokenAnswer, register_term
from wavalign_ext.rewards.manager import SpokenRewardManager
from wavalign_ext.speech.codecs.base import register_codec


@register_codec("twin")
class TwinCodec:
    """As many codes as the layout has; silence of the right length."""

    sample_rate, frame_rate = 16000, 12.5

    def __init__(self, path: str, codes: int = 16384) -> None:
        self.codebook_size = codes

    def encode(self, wave: np.ndarray) -> list[int]:
        return [0] * round(len(wave) / self.sample_rate * self.frame_rate)

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        return np.zeros(round(len(codes) / self.frame_rate * self.sample_rate), dtype=np.float32)


@register_term("lottery")
class Lottery:
    """One of five scores, by a hash of the answer: something that random answers differ in."""

    def __init__(self, scale: tuple[float, float]) -> None:
        self.scale = scale

    async def score(self, answer: SpokenAnswer) -> float:
        low, high = self.scale
        drawn = zlib.crc32(repr((answer.text, answer.speech_codes)).encode()) % 5
        return low + (high - low) * drawn / 4


class RecordingRewardManager(SpokenRewardManager):
    """Also puts the response's ids into the rollout's record."""

    async def run_single(self, data: Any) -> dict[str, Any]:
        result = await super().run_single(data)
        item = data[-1]
        length = item.batch["responses"].shape[-1]
        valid = int(item.batch["attention_mask"][-length:].sum())
        result["reward_extra_info"]["ids"] = " ".join(map(str, item.batch["responses"][:valid].tolist()))
        return result
