"""Whether model, tokenizer, layout, codec and reward terms load and belong together, before Ray starts."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from wavalign_ext.config import ConfigError, WavAlignConfig
from wavalign_ext.schema import one_line
from wavalign_ext.verl_keys import OFFLINE

# A model's vocabulary is rounded up for speed, to a multiple of 64 or more, or of 8 as VITA-Audio's; a larger surplus
# means that tokens are missing from the tokenizer.
ROUNDINGS = {8: 8, 64: 1024}  # multiple: most surplus rows


def check_model(config: DictConfig, wav: WavAlignConfig) -> Any:
    """Check that model, tokenizer, layout, codec and reward terms load and agree; returns the tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    from wavalign_ext import models, parallel
    from wavalign_ext.checks.preflight_heard import check_hearing
    from wavalign_ext.checks.preflight_parallel import check_streams
    from wavalign_ext.integration.lora import check_head
    from wavalign_ext.rewards import build_terms
    from wavalign_ext.speech.codecs import load_codec
    from wavalign_ext.speech.layout import load_layout

    path, trust = config.actor_rollout_ref.model.path, config.actor_rollout_ref.model.trust_remote_code
    if str(path).startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
        raise ConfigError(f"actor_rollout_ref.model.path={path!r} is not a folder: give a Hugging Face model folder")
    models.register()
    parallel.register()
    try:
        model_config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        message = f"actor_rollout_ref.model.path={path!r} does not load: {one_line(str(error))}"
        raise ConfigError(message) from error
    vocab_size = model_config.vocab_size
    surplus = vocab_size - len(tokenizer)
    if surplus and not any(0 < surplus < most and vocab_size % step == 0 for step, most in ROUNDINGS.items()):
        raise ConfigError(
            f"the tokenizer in {path!r} has {len(tokenizer)} tokens and the model {vocab_size}: they must be equal, or "
            "the model's the next multiple of 8, or a multiple of 64 by less than 1024 padding rows; resize the "
            "model's embeddings, or use the tokenizer it was trained with"
        )
    check_head(config, model_config)
    _check_length(config, model_config)
    layout = load_layout(wav.layout).resolve(tokenizer, vocab_size)
    check_hearing(config, layout, model_config)
    check_streams(config, wav, layout, model_config)
    codec = load_codec(wav.codec, device="cpu")
    speech_tokens = layout.speech_end - layout.speech_start
    if codec.codebook_size != speech_tokens:
        raise ConfigError(
            f"the codec {wav.codec['type']!r} has {codec.codebook_size} codes and layout {layout.layout.name!r} "
            f"{speech_tokens} speech tokens: choose a codec and a layout that belong together; for answers in text "
            "alone, wavalign.codec.type=none"
        )
    codec.decode([0] if speech_tokens else [])  # loads what decodes: wrong weights end the run here
    if not speech_tokens and wav.preference.tokens == "speech":
        raise ConfigError(
            f"wavalign.preference.tokens=speech is not allowed: layout {layout.layout.name!r} answers in text alone"
        )
    if config.trainer.v1.trainer_mode != OFFLINE:  # pairs of the data are not scored
        build_terms(wav.reward.terms, wav.reward.scale)
    return tokenizer


def _check_length(config: DictConfig, model_config: Any) -> None:
    """vLLM would refuse a sequence that the model has no positions for, minutes later."""
    rollout, data = config.actor_rollout_ref.rollout, config.data
    positions = getattr(model_config, "max_position_embeddings", None)
    key, longest = "actor_rollout_ref.rollout.max_model_len", rollout.max_model_len
    if longest is None:
        key, longest = "data.max_prompt_length + max_response_length", data.max_prompt_length + data.max_response_length
    if positions is not None and longest > positions:
        raise ConfigError(f"{key}={longest} is more than the model's {positions} positions: lower it")
    if longest < data.max_prompt_length + data.max_response_length:
        raise ConfigError(
            f"{key}={longest} is less than data.max_prompt_length + data.max_response_length "
            f"({data.max_prompt_length} + {data.max_response_length}): raise it, or lower one of these"
        )
