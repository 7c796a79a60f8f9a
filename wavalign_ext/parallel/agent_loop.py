"""The agent loop ``spoken_pairs``: prompts become frames, and forced ids carry no loss."""

import functools
import json
from typing import Any

from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register

from wavalign_ext.rollout.agent_loop import SpokenAgentLoop
from wavalign_ext.speech.layout import load_layout


@register("spoken_pairs")
class PairAgentLoop(SpokenAgentLoop):
    """:class:`SpokenAgentLoop` for layouts with two streams; rows are flat, and verl sees nothing else."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        node: Any = self.config.wavalign.layout
        node = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        self.layout = _resolved(json.dumps(node), self.tokenizer)

    async def ct_build_initial_tokens(self, *args: Any, **kwargs: Any) -> list[int]:
        """verl's prompt, one token a frame, as flat frames.

        Raises:
            ValueError: a prompt longer than ``data.max_prompt_length``: what is cut off would shift the streams.
        """
        flat = self.layout.prompt(await super().ct_build_initial_tokens(*args, **kwargs))
        if len(flat) > self.rollout_config.prompt_length:
            longest = self.rollout_config.prompt_length
            raise ValueError(f"a prompt of {len(flat)} ids is longer than data.max_prompt_length={longest}")
        return flat

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """See verl's ``SingleTurnAgentLoop.run``; the audio has what ``wavalign.audio_sampling`` gives it."""
        own: Any = OmegaConf.to_container(self.config.wavalign.audio_sampling)
        given = {f"audio_{name}": value for name, value in own.items() if value is not None}
        if given:
            sampling_params = {**sampling_params, "extra_args": given}
        output = await super().run(sampling_params, **kwargs)  # pyright: ignore[reportAbstractUsage]  (as there)
        output.response_mask = self.layout.drawn(output.response_ids).long().tolist()
        return output


@functools.lru_cache
def _resolved(layout: str, tokenizer: Any) -> Any:
    return load_layout(json.loads(layout)).resolve(tokenizer)
