"""Rollouts whose prompts were heard through an encoder: their vectors travel on with the row, as the model's input.

verl's worker makes a row's ``multi_modal_inputs`` with a processor of transformers, which such a model has none of.
"""

from typing import Any

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from wavalign_ext.speech.heard import multi_modal_inputs


class HearingWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):  # pyright: ignore[reportAttributeAccessIssue]
    """verl's agent loop worker."""

    def _compute_multi_modal_inputs(self, output: Any, input_ids: Any) -> dict[str, Any]:
        heard = (output.multi_modal_data or {}).get("audios") if self.processor is None else None
        return multi_modal_inputs(heard) if heard else super()._compute_multi_modal_inputs(output, input_ids)


class HearingManager(AgentLoopManagerTQ):
    """verl's manager with :class:`HearingWorker`; the recipes name it: ``rollout.agent.agent_loop_manager_class``."""

    async def _init_agent_loop_workers(self) -> Any:
        self.agent_loop_workers_class = ray.remote(HearingWorker)
        return await super()._init_agent_loop_workers()
