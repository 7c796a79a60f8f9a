"""The table of verl's keys against verl itself."""

import inspect
from typing import Any, get_args

import pytest
from omegaconf import DictConfig, OmegaConf

from wavalign_ext.method.loss import LossCoefficients
from wavalign_ext.method.surrogates import SURROGATES
from wavalign_ext.method.token_weights import AGGREGATIONS
from wavalign_ext.schema import allowed, sections
from wavalign_ext.verl_keys import ACTS, REMEDIES, ActorKeys, PolicyLossKeys, VerlKeys, check_verl_keys, stock_config


def changed(**keys: Any) -> DictConfig:
    config = stock_config().copy()
    for key, value in keys.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return config


def test_the_stock_configuration_is_what_verl_composes() -> None:
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        composed: Any = OmegaConf.to_container(compose("ppo_trainer"), resolve=False)
    composed.pop("model_engine")  # the choice itself, which the file leaves out
    assert composed == OmegaConf.to_container(stock_config(), resolve=False)


@pytest.mark.parametrize("key", [*(f"{node}.{name}" for node, names in ACTS.items() for name in names), *REMEDIES])
def test_the_table_names_keys_that_verl_has(key: str) -> None:
    missing = object()
    found = OmegaConf.select(stock_config(), key, default=missing, throw_on_missing=False)
    assert found is not missing or key.rpartition(".")[2] == "strategy"  # ??? until an engine is chosen


def test_the_choices_are_what_the_loss_has() -> None:
    assert set(get_args(PolicyLossKeys.model_fields["loss_mode"].annotation)) == set(SURROGATES)
    assert set(get_args(ActorKeys.model_fields["loss_agg_mode"].annotation)) == set(AGGREGATIONS)


def test_the_stock_configuration_passes() -> None:
    check_verl_keys(stock_config())


def test_a_key_that_follows_another_is_no_change() -> None:
    """critic.ppo_mini_batch_size is the actor's by interpolation; so is the rollout's n in four places."""
    check_verl_keys(changed(actor_rollout_ref__actor__ppo_mini_batch_size=8, actor_rollout_ref__rollout__n=7))
    check_verl_keys(changed(critic__ppo_mini_batch_size=256))  # written out, the same


def test_without_a_bound_of_its_own_a_side_has_clip_ratio_as_in_verl() -> None:
    config = changed(
        actor_rollout_ref__actor__clip_ratio=0.3,
        actor_rollout_ref__actor__clip_ratio_low=None,
        actor_rollout_ref__actor__clip_ratio_high=0.5,
    )
    given = VerlKeys.of(config).actor_rollout_ref.actor.coefficients
    assert (given["clip_low"], given["clip_high"], given["clip_c"]) == (0.3, 0.5, 3.0)
    assert set(given) <= set(inspect.signature(LossCoefficients).parameters)


def test_verl_s_defaults_are_the_loss_s() -> None:
    given = VerlKeys.of(changed(actor_rollout_ref__actor__loss_agg_mode="token-mean")).actor_rollout_ref.actor
    assert LossCoefficients(**given.coefficients) == LossCoefficients()


def test_the_gradient_bound_that_verl_s_engine_reads_is_optim_clip_grad() -> None:
    """Why actor.grad_clip is refused: a fact of verl's source, which a newer verl may change."""
    from verl.workers.engine.fsdp import transformer_impl

    source = inspect.getsource(transformer_impl)
    assert "optimizer_config.clip_grad" in source and "grad_clip" not in source


def test_every_key_that_we_read_says_what_it_is_for() -> None:
    """The documentation is made of these."""
    keys = dict(sections(VerlKeys))
    assert [key for key, field in keys.items() if not field.description] == []
    assert "algorithm.filter_groups.enable" in keys, "an optional section has keys too"
    assert allowed(keys["algorithm.rollout_correction.rollout_rs_threshold"]) == "a number or text, or null"
    assert allowed(keys["actor_rollout_ref.actor.clip_ratio_low"]) == "a number ≥ 0, or null"
