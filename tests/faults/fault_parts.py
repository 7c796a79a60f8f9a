"""Reward terms that fail on purpose: one waits for ever, one blocks. By ``VERL_USE_EXTERNAL_MODULES=fault_parts``."""

import asyncio
import time
from typing import Any

from wavalign_ext.rewards.registry import register_term


@register_term("waiting")
class Waiting:
    """Never answers, and lets others work."""

    def __init__(self, scale: Any) -> None:
        pass

    async def score(self, answer: Any) -> float:
        await asyncio.sleep(1e6)
        return 1.0


@register_term("blocking")
class Blocking:
    """Never answers, and holds up its worker's event loop."""

    def __init__(self, scale: Any) -> None:
        pass

    async def score(self, answer: Any) -> float:
        time.sleep(1e6)
        return 1.0
