"""verl's vLLM server for two-stream models: flat ids in and out, the engine's pairs between them.

Registered as verl's ``vllm`` by ``integration/patches.py``; a model of one stream gets verl's own server.
"""

# pyright: reportAttributeAccessIssue=false

from collections.abc import AsyncIterator
from typing import Any

import ray
from transformers import PretrainedConfig
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from wavalign_ext.parallel.config import MODEL_TYPES
from wavalign_ext.parallel.pairs import Pairs


class _BothColumns:
    """An engine that is asked for the audio's log-probs as well, and keeps them by request: verl takes one column."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.audio = engine, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def generate(self, *, sampling_params: Any, request_id: str, **more: Any) -> AsyncIterator[Any]:
        if sampling_params.logprobs is not None:
            sampling_params.logprobs = 1
        async for output in self.engine.generate(sampling_params=sampling_params, request_id=request_id, **more):
            if output.outputs and output.outputs[0].logprobs is not None:
                # A position's column keeps the sampler's order: the pair's id, then the audio index.
                self.audio[request_id] = [list(column.values())[1].logprob for column in output.outputs[0].logprobs]
            yield output


class PairServer(vLLMHttpServer):
    """Prompts and answers are flat, ``[text_1, audio_1, …]``, and lengths count their ids: two a frame."""

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **more: Any
    ) -> TokenOutput:
        """verl's ``generate``; ``log_probs`` are those of both streams, 0 where an id was forced.

        Raises:
            ValueError: an odd number of ids, or an id of the other stream.
        """
        pairs, config = Pairs(self.model_config.hf_config), self.config
        if not isinstance(self.engine, _BothColumns):
            self.engine = _BothColumns(self.engine)
        settings = dict(sampling_params)
        asked = settings.pop("max_tokens", settings.pop("max_new_tokens", None))
        room = config.prompt_length + config.response_length - len(prompt_ids)
        asked = min(config.response_length, room) if asked is None else asked
        settings |= {"max_tokens": max(asked // 2, 1), "stop_token_ids": pairs.stop_ids, "ignore_eos": True}
        settings["detokenize"] = False
        output = await super().generate(pairs.from_flat(prompt_ids), settings, request_id, **more)
        audio = self.engine.audio.pop(request_id, None)
        output.token_ids, drawn = pairs.to_flat(output.token_ids)
        if output.log_probs is not None:
            both = [logp for frame in zip(output.log_probs, audio, strict=True) for logp in frame]
            output.log_probs = [logp if said else 0.0 for logp, said in zip(both, drawn, strict=True)]
        return output


class PairReplica(vLLMReplica):
    """verl's replica; its servers speak pairs where the model has two streams."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the folder: verl hands over its configuration here, not yet the model's.
        if PretrainedConfig.get_config_dict(self.model_config.path)[0].get("model_type") in MODEL_TYPES:
            self.server_class = ray.remote(PairServer)
