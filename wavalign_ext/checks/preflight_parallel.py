"""What a run on two streams needs, and what it cannot have, before Ray starts: one line each."""

import os
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavalign_ext.config import ConfigError, WavAlignConfig
from wavalign_ext.integration.fused_head import BACKEND
from wavalign_ext.integration.lora import adapters
from wavalign_ext.parallel.config import MODEL_TYPES
from wavalign_ext.parallel.pairs import Pairs
from wavalign_ext.schema import refusal
from wavalign_ext.speech.layout import ResolvedLayout
from wavalign_ext.speech.parallel import ParallelLayout

LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"
VLLM = "actor_rollout_ref.rollout.engine_kwargs.vllm"
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"


def check_streams(config: DictConfig, wav: WavAlignConfig, layout: ResolvedLayout, model: Any) -> None:
    """Refuse settings that two streams cannot have, or that one stream does nothing with.

    Raises:
        ConfigError: with the value and the remedy.
    """
    parallel, two = isinstance(layout, ParallelLayout), model.model_type in MODEL_TYPES
    name = layout.layout.name
    if parallel != two:
        has, wants = ("two streams", "one") if parallel else ("one stream", "two")
        raise ConfigError(
            f"layout {name!r} has {has} and the model in {config.actor_rollout_ref.model.path!r} {wants}: choose a "
            "layout and a model that belong together"
        )
    loop, own = OmegaConf.select(config, LOOP), wav.audio_sampling
    if parallel != (loop == "spoken_pairs"):
        raise ConfigError(refusal(LOOP, loop, f"with layout {name!r} it is {'spoken_pairs' if parallel else 'spoken'}"))
    if not isinstance(layout, ParallelLayout):
        if own.top_k is not None or own.top_p is not None:
            given = {key: value for key, value in own.model_dump().items() if value is not None}
            raise ConfigError(
                refusal("wavalign.audio_sampling", given, f"layout {name!r} has one stream: leave it null")
            )
        return
    _check_ids(layout, model, name)
    for key, (ok, why) in (_lengths(config) | _sampling(config, wav, model) | _engines(config)).items():
        if not ok:
            raise ConfigError(refusal(key, _given(config, key), why))


def _check_ids(layout: ParallelLayout, model: Any, name: str) -> None:
    Pairs(model)  # raises where the pairs do not fit into 32 bits
    pairs: dict[str, Any] = {"speech": (layout.speech_start, model.text_vocab)}
    pairs["eos"] = (sorted(layout.eos_ids), sorted(model.audio_end))  # in any order: the layout's first ends a target
    for key in ("delay", "text_blank", "text_end", "audio_blank", "audio_start"):
        pairs[f"streams.{key}"] = (getattr(layout, key), getattr(model, key))
    for key, (ours, its) in pairs.items():
        if ours != its:
            raise ConfigError(
                f"layout {name!r}: {key} is {ours} by the tokenizer and {its} in the model's config.json: use the "
                "tokenizer and the layout that the model was made with"
            )


def _given(config: DictConfig, key: str) -> Any:
    if key == RUNNER:
        return _runner(config)
    return OmegaConf.select(config, key)


def _runner(config: DictConfig) -> Any:
    return OmegaConf.select(config, f"ray_kwargs.ray_init.runtime_env.env_vars.{RUNNER}") or os.environ.get(RUNNER)


Rules = dict[str, tuple[bool, str]]


def _lengths(config: DictConfig) -> Rules:
    even = "a frame is two ids, and prompt and answer hold whole frames: give an even number"
    return {f"data.{key}": (config.data[key] % 2 == 0, even) for key in ("max_prompt_length", "max_response_length")}


def _sampling(config: DictConfig, wav: WavAlignConfig, model: Any) -> Rules:
    rollout = config.actor_rollout_ref.rollout
    rules: Rules = {}
    for key, top_k in (("rollout.top_k", rollout.top_k), ("rollout.val_kwargs.top_k", rollout.val_kwargs.top_k)):
        smallest = min(model.text_vocab, model.audio_said)
        why = f"the smaller stream has {smallest} ids: give at most as many, or -1 for all"
        rules[f"actor_rollout_ref.{key}"] = (top_k is None or top_k <= smallest, why)
    said = model.audio_said
    rules["wavalign.audio_sampling.top_k"] = (
        (wav.audio_sampling.top_k or 0) <= said,
        f"the audio stream has {said} ids that can be said: give at most as many, or null",
    )
    rules["wavalign.constrained_decoding"] = (
        not wav.constrained_decoding,
        "the grammar of two streams is in the model, and a schedule there is none: set it to false",
    )
    penalty = OmegaConf.select(rollout, "repetition_penalty")
    rules["actor_rollout_ref.rollout.repetition_penalty"] = (
        penalty in (None, 1, 1.0),
        "it acts on one stream of ids and a pair has two: leave it at 1.0",
    )
    return rules


def _engines(config: DictConfig) -> Rules:
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    lora = adapters(model)
    targets, excluded = model.target_modules, OmegaConf.select(model, "exclude_modules") or ""
    on_head = (targets == "all-linear" or "audio_head" in str(targets)) and not re.fullmatch(excluded, "audio_head")
    backend = OmegaConf.select(model, "fused_kernel_options.impl_backend")
    runner = str(_runner(config) or "0").lower()
    return {
        f"{VLLM}.skip_tokenizer_init": (
            OmegaConf.select(config, f"{VLLM}.skip_tokenizer_init") is True,
            "vLLM would hold pairs against the tokenizer's vocabulary: set it to true",
        ),
        f"{VLLM}.speculative_config": (
            not OmegaConf.select(config, f"{VLLM}.speculative_config"),
            "drafts are checked id by id and an id is a pair: leave it out",
        ),
        "actor_rollout_ref.model.mtp.enable": (
            not OmegaConf.select(model, "mtp.enable"),
            "drafts are checked id by id and an id is a pair: set it to false",
        ),
        RUNNER: (runner in ("0", "false"), "its sampler draws one stream: set it to 0"),
        "actor_rollout_ref.actor.ulysses_sequence_parallel_size": (
            actor.ulysses_sequence_parallel_size == 1,
            "rows of two streams are not cut over ranks: set it to 1",
        ),
        "actor_rollout_ref.model.fused_kernel_options.impl_backend": (
            not model.use_fused_kernels or backend == BACKEND,
            f"verl's fused head knows one stream: use {BACKEND}, or model.use_fused_kernels=false",
        ),
        "actor_rollout_ref.model.exclude_modules": (
            not lora or not on_head,
            "an adapter on the audio's head is not possible: set it to '.*(audio_head|audio_projection).*'",
        ),
        "actor_rollout_ref.model.lora.merge": (
            not lora or bool(OmegaConf.select(model, "lora.merge")),
            "vLLM's two-stream model takes no adapters: set it to true, which merges them before they are sent",
        ),
    }
