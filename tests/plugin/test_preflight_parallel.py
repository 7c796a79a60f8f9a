"""What a run on two streams cannot have ends it before Ray starts, in one line that names value and remedy."""

from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from transformers import Qwen2Config

from wavalign_ext.checks.preflight_parallel import check_streams
from wavalign_ext.config import ConfigError, WavAlignConfig
from wavalign_ext.parallel.tokenizer import build_tokenizer, model_config
from wavalign_ext.speech.layout import load_layout

ROLLOUT = "actor_rollout_ref.rollout"
LORA = ["actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.exclude_modules=null"]
MERGED = "actor_rollout_ref.model.lora.merge=true"


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    plain = load_layout("pocket_parallel")
    tokenizer = build_tokenizer(["one is one"], plain)
    layout: Any = plain.resolve(tokenizer)
    return layout, model_config(layout, len(tokenizer), hidden_size=32, num_attention_heads=1, num_key_value_heads=1)


def composed(*overrides: str) -> DictConfig:
    import verl  # noqa: F401  (the plugin registers the resolvers)

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", ["+recipe=wavalign_parallel", *overrides])


def wav(config: DictConfig) -> WavAlignConfig:
    return WavAlignConfig.from_mapping(OmegaConf.to_container(config.wavalign, resolve=True))


def test_the_recipe_stands(parts: tuple[Any, Any]) -> None:
    config = composed()
    check_streams(config, wav(config), *parts)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.max_prompt_length=161"], "data.max_prompt_length=161 is not allowed: a frame is two ids"),
        (["data.max_response_length=127"], "data.max_response_length=127 is not allowed: a frame is two ids"),
        ([f"{ROLLOUT}.agent.default_agent_loop=spoken"], "default_agent_loop='spoken' is not allowed.*spoken_pairs"),
        ([f"{ROLLOUT}.top_k=600"], "rollout.top_k=600 is not allowed: the smaller stream has [0-9]+ ids"),
        ([f"{ROLLOUT}.val_kwargs.top_k=600"], "val_kwargs.top_k=600 is not allowed: the smaller stream"),
        (
            ["wavalign.audio_sampling.top_k=514"],
            "audio_sampling.top_k=514 is not allowed: the audio stream has 513 ids",
        ),
        (
            ["wavalign.constrained_decoding=true"],
            "constrained_decoding=True is not allowed: the grammar of two streams",
        ),
        ([f"+{ROLLOUT}.repetition_penalty=1.1"], "repetition_penalty=1.1 is not allowed: it acts on one stream"),
        (
            [f"{ROLLOUT}.engine_kwargs.vllm.skip_tokenizer_init=false"],
            "skip_tokenizer_init=False is not allowed.*set it to true",
        ),
        (
            [f"+{ROLLOUT}.engine_kwargs.vllm.speculative_config={{method: ngram}}"],
            "speculative_config={'method': 'ngram'} is not allowed: drafts are checked id by id",
        ),
        (
            ["+ray_kwargs.ray_init.runtime_env.env_vars.VLLM_USE_V2_MODEL_RUNNER='1'"],
            "VLLM_USE_V2_MODEL_RUNNER='1' is not allowed: its sampler draws one stream",
        ),
        (
            ["actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"],
            "ulysses_sequence_parallel_size=2 is not allowed: rows of two streams",
        ),
        (
            ["actor_rollout_ref.model.fused_kernel_options.impl_backend=torch"],
            "impl_backend='torch' is not allowed: verl's fused head knows one stream",
        ),
        ([*LORA, MERGED], "exclude_modules=None is not allowed: an adapter on the audio's head"),
        ([LORA[0]], "lora.merge=.* is not allowed: vLLM's two-stream model takes no adapters"),
    ],
)
def test_what_cannot_be_is_named_in_one_line(parts: tuple[Any, Any], overrides: list[str], message: str) -> None:
    config = composed(*overrides)
    with pytest.raises(ConfigError, match=message) as caught:
        check_streams(config, wav(config), *parts)
    assert "\n" not in str(caught.value)


def test_layout_and_model_belong_together(parts: tuple[Any, Any]) -> None:
    layout, model = parts
    config = composed()
    with pytest.raises(ConfigError, match="layout 'pocket_parallel' has two streams and the model in .* one: choose"):
        check_streams(config, wav(config), layout, Qwen2Config())
    other = model_config(layout, model.vocab_size)
    other.delay = 6
    with pytest.raises(ConfigError, match="streams.delay is 4 by the tokenizer and 6 in the model's config.json"):
        check_streams(config, wav(config), layout, other)
