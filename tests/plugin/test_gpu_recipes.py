"""The recipes of real models: they compose, verl's dataclasses take them, and what they change is on record.

``tests/plugin/snapshots/RECIPE.yaml`` holds every key that differs from verl's defaults. After a change that is meant:

    WAVALIGN_UPDATE_SNAPSHOTS=1 python -m pytest tests/plugin/test_gpu_recipes.py
"""

import difflib
import os
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from twins import build_twin

RECIPES = ("wavalign_vita_audio", "wavalign_vita_audio_lora", "wavalign_vita_audio_2nodes", "wavalign_glm4_voice")
RECIPES += (
    "wavalign_kimi_audio",
    "wavalign_vita_audio_plus",
    "wavalign_vita_audio_plus_lora",
    "wavalign_vita_audio_plus_2nodes",
)
SNAPSHOTS = Path(__file__).with_name("snapshots")
# Attention heads and KV heads, which parallel sizes must divide.
HEADS = {
    "kimi_audio": (28, 4),
    "vita_audio_balance": (28, 4),
    "vita_audio_plus_vanilla": (28, 4),
    "glm4_voice": (32, 2),
}
GIVEN = (
    "data.train_files=train.parquet",
    "data.val_files=val.parquet",
    "wavalign.codec.path=codec",
    "wavalign.reward.terms.holistic.model=judge",
    "wavalign.reward.terms.holistic.endpoint.url=https://localhost/v1",
)


def composed(*overrides: str) -> DictConfig:
    import verl  # noqa: F401  (loads the plugin)

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", list(overrides))


@pytest.fixture(scope="module")
def recipes() -> dict[str, DictConfig]:
    return {name: composed(f"+recipe={name}") for name in RECIPES}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models with the real vocabulary, by layout: verl's model dataclass reads a folder."""
    return {name: build_twin(name, tmp_path_factory.mktemp(name), layers=1, hidden=8) for name in HEADS}


def worker_config(config: DictConfig, part: str, **changed: Any) -> Any:
    """verl's dataclass of one part, made as its worker makes it."""
    from verl.utils.config import omega_conf_to_dataclass

    node = config.actor_rollout_ref[part].copy()
    OmegaConf.resolve(node)
    OmegaConf.set_struct(node, False)
    node.update(changed)
    if part == "ref":  # engine_workers.py renames these
        node.update({key.replace("log_prob", "ppo"): node.pop(key) for key in list(node) if "micro_batch" in key})
        node.use_dynamic_bsz = node.pop("log_prob_use_dynamic_bsz")
        node.ppo_max_token_len_per_gpu = node.pop("log_prob_max_token_len_per_gpu")
    return omega_conf_to_dataclass(node)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """``{dotted key: value}``; a list is a value."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}.{name}").items()}


def changes(config: DictConfig) -> str:
    """Keys that differ from verl's defaults, unresolved, one per line."""
    default, recipe = (flat(OmegaConf.to_container(c)) for c in (composed(), config))
    missing = object()
    changed = {key.lstrip("."): value for key, value in recipe.items() if default.get(key, missing) != value}
    gone = [key.lstrip(".") for key in default if not any(k == key or k.startswith(f"{key}.") for k in recipe)]
    return OmegaConf.to_yaml(OmegaConf.create({**changed, **dict.fromkeys(gone, "(gone)")}), sort_keys=True)


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_changes_is_on_record(recipes: dict[str, DictConfig], name: str) -> None:
    found, path = changes(recipes[name]), SNAPSHOTS / f"{name}.yaml"
    if os.environ.get("WAVALIGN_UPDATE_SNAPSHOTS"):
        path.write_text(found)
    kept = path.read_text() if path.is_file() else ""
    diff = "\n".join(difflib.unified_diff(kept.splitlines(), found.splitlines(), str(path), "now", lineterm="", n=0))
    assert not diff, f"{diff}\n\nIf this is meant: WAVALIGN_UPDATE_SNAPSHOTS=1 python -m pytest {__file__}"


@pytest.mark.parametrize("name", RECIPES)
def test_verl_and_wavalign_accept_it(recipes: dict[str, DictConfig], twins: dict[str, Path], name: str) -> None:
    from verl.utils.config import validate_config

    from wavalign_ext.checks.preflight import check_config

    config = recipes[name]
    built = {part: worker_config(config, part) for part in ("actor", "ref", "rollout")}
    built["model"] = worker_config(config, "model", path=str(twins[config.wavalign.layout.name]))
    validate_config(config, use_reference_policy=True, use_critic=False)
    check_config(config)

    actor, rollout = built["actor"], built["rollout"]
    ids = 2048 if name == "wavalign_kimi_audio" else 1024  # two a frame
    assert (actor.strategy, actor.engine.strategy, built["ref"].engine.strategy) == ("fsdp2",) * 3
    assert actor.engine.mixed_precision["param_dtype"] == "bf16" and rollout.dtype == "bfloat16"
    assert built["model"].use_remove_padding and rollout.enable_chunked_prefill
    assert built["model"].override_config["attn_implementation"] == "flash_attention_2"
    assert (rollout.n, rollout.temperature, rollout.top_p, rollout.response_length) == (4, 0.7, 0.9, ids)
    assert rollout.max_model_len == rollout.prompt_length + rollout.response_length
    assert (actor.optim.lr_warmup_steps, actor.optim.weight_decay, actor.optim.clip_grad) == (20, 0.01, 1.2)
    assert built["model"].tokenizer.chat_template


@pytest.mark.parametrize("name", RECIPES)
def test_parallel_sizes_fit_the_model(recipes: dict[str, DictConfig], name: str) -> None:
    config = recipes[name]
    rollout, actor, trainer = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor, config.trainer
    heads, kv_heads = HEADS[config.wavalign.layout.name]
    tensor, sequence = rollout.tensor_model_parallel_size, actor.ulysses_sequence_parallel_size
    assert heads % tensor == 0 and kv_heads % tensor == 0 and trainer.n_gpus_per_node % tensor == 0
    assert heads % sequence == 0 and kv_heads % sequence == 0
    rows = config.data.train_batch_size * (rollout.n + 1)  # an anchor joins each prompt's answers
    assert rows % (trainer.n_gpus_per_node * trainer.nnodes // sequence) == 0
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert actor.ppo_max_token_len_per_gpu * sequence >= longest


def test_sequence_parallel_can_be_turned_on() -> None:
    config = composed("+recipe=wavalign_vita_audio", "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2")
    for part in ("actor", "ref"):
        assert worker_config(config, part).engine.ulysses_sequence_parallel_size == 2


def test_the_variants_differ_where_they_should(recipes: dict[str, DictConfig]) -> None:
    lora, nodes = recipes["wavalign_vita_audio_lora"], recipes["wavalign_vita_audio_2nodes"]
    assert lora.actor_rollout_ref.model.lora_rank > 0 and lora.trainer.n_gpus_per_node == 1
    assert nodes.trainer.nnodes == 2 and nodes.ray_kwargs.ray_init.address == "auto"
    assert composed("+recipe=wavalign_vita_audio", "layout@wavalign.layout=vita_audio_boost").wavalign.layout.schedule


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_of_the_embedded_default_is_left(recipes: dict[str, DictConfig], name: str) -> None:
    left = [key for key, value in flat(OmegaConf.to_container(recipes[name])).items() if "pocket" in str(value)]
    assert left == []


def test_a_model_must_be_given() -> None:
    from wavalign_ext.checks.preflight import Preflight

    config = composed("+recipe=wavalign_vita_audio", *GIVEN)
    with pytest.raises((SystemExit, MissingMandatoryValue), match=r"actor_rollout_ref\.model\.path"):
        Preflight().on_job_start(config)
