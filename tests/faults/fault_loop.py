"""An agent loop that fails for the first answer of every prompt, as one over a bad row does."""

from typing import Any

from wavalign_ext.rollout.agent_loop import SpokenAgentLoop


class FailingLoop(SpokenAgentLoop):
    """Named by failing_loop.yaml."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        if kwargs["session_id"] == 0:
            raise ValueError("this answer fails on purpose")
        return await super().run(sampling_params, **kwargs)
