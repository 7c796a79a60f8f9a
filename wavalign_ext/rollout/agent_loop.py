"""verl's single-turn rollout with a seed of its own per answer, so that a resumed run samples what it would have.

vLLM then draws each answer's token from a generator of its own, one after the other; ``wavalign.seeded_sampling=false``
draws for all at once, and a resumed run goes on with other answers.
"""

import hashlib
from typing import Any

import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from wavalign_ext.speech.heard import HEARD_FEATURES, load_features


def request_seed(*parts: int) -> int:
    """A 31-bit seed from run seed, step, row and session; equal parts give equal seeds in every process."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


@register("spoken")
class SpokenAgentLoop(SingleTurnAgentLoop):
    """Registered with verl as the agent loop ``spoken``. verl makes one for each answer."""

    heard: list[torch.Tensor]

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """See verl's ``SingleTurnAgentLoop.run``."""
        if OmegaConf.select(self.config, "wavalign.seeded_sampling", default=True):
            parts = (self.rollout_config.seed, kwargs["global_steps"], kwargs["index"], kwargs["session_id"])
            sampling_params = {**sampling_params, "seed": request_seed(*map(int, parts))}
        root = OmegaConf.select(self.config, "wavalign.audio_root")
        self.heard = await self.loop.run_in_executor(None, load_features, kwargs.get(HEARD_FEATURES), root)
        return await super().run(sampling_params, **kwargs)  # pyright: ignore[reportAbstractUsage]  (verl decorates it)

    async def process_multi_modal_info(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The vectors of the row's recordings go to vLLM as they are; see ``models/hearing_vllm.py``."""
        return {"audios": self.heard} if self.heard else await super().process_multi_modal_info(messages)

    def _assert_mm_supported(self, has_multi_modal: bool) -> None:
        """verl wants a processor, to write placeholders; ours are in the row's prompt."""
        if not self.heard:
            super()._assert_mm_supported(has_multi_modal)
