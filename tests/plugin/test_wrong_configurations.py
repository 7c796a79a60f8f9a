"""What is wrong in a configuration ends the run before Ray starts, in one line that names the key."""

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

from wavalign_ext.config import WavAlignConfig
from wavalign_ext.schema import Section, sections

RECIPES = sorted(path.stem for path in Path(__file__).parents[2].glob("recipes/wavalign_recipes/recipe/*.yaml"))
ACTOR, CORRECTION = "actor_rollout_ref.actor", "algorithm.rollout_correction"
DPO = "wavalign.preference.objective=dpo"
OFFLINE = "trainer.v1.trainer_mode=wavalign_offline wavalign.reward.terms=null"
NO_KL = "wavalign.kl.text=0 wavalign.kl.speech=0"
NOTHING, CHOICE = "would do nothing", "is not allowed: one of"

# KEY=VALUE [KEY=VALUE ...], and what the line says after the last key's name.
WRONG = {
    # types and bounds of our keys
    "wavalign.mixing.lambda_max=null": r"=None is not allowed: a number in \[0, 1\]. Left out, it is 0.8",
    "wavalign.mixing.lambda_max=1.5": r"=1.5 is not allowed: a number in \[0, 1\]",
    "wavalign.mixing.ema_decay=high": r"='high' is not allowed: a number in \[0, 1\)",
    "wavalign.mixing.ema_decay=1": "=1 is not allowed",
    "wavalign.mixing.reward_sharpness=0": "=0 is not allowed: a number > 0, or null",
    "wavalign.mixing.reward_threshold=middle": "='middle' is not allowed: a number, or null",
    "wavalign.mixing.variance_scale=-1": "=-1 is not allowed: a number > 0, or null",
    "wavalign.mixing.type=auto": CHOICE,
    "wavalign.mixing=0.5": "=0.5 is not allowed: a mapping with the keys type, value",
    "wavalign.reward.scale=5": "=5 is not allowed: a list of two numbers",
    "wavalign.reward.scale=[1,2,3]": r"=\[1, 2, 3\] is not allowed: a list of two numbers",
    "wavalign.reward.scale=[5,1]": "low < high",
    "wavalign.reward.scale=[1,'5']": r"\[1\]='5' is not allowed",
    "wavalign.reward.terms=semantic": "='semantic' is not allowed: a mapping",
    "wavalign.reward.terms.semantic=0.7": "=0.7 is not allowed: a mapping such as",
    "wavalign.reward.terms.semantic.weight=heavy": "='heavy' is not allowed: a number ≥ 0",
    "wavalign.reward.terms.semantic.weight=true": "=True is not allowed",
    "wavalign.reward.terms.semantic.weight=-1": "=-1 is not allowed",
    "wavalign.reward.terms.semantic.type=3": "=3 is not allowed: the name of a term",
    "wavalign.kl=0.1": "=0.1 is not allowed: a mapping with the keys text, speech",
    "wavalign.kl.text=true": "=True is not allowed: a number ≥ 0",
    "wavalign.kl.speech=-0.001": "=-0.001 is not allowed",
    "wavalign.kl.speech=.nan": "=nan is not allowed",
    "wavalign.preference.tokens=sound": CHOICE,
    "wavalign.preference.text_weight=.inf": "=inf is not allowed",
    "wavalign.preference.advantage=gae": CHOICE,
    "wavalign.preference.objective=kto": CHOICE,
    f"{OFFLINE} wavalign.preference.objective=grpo": "trains on pairs from the data: choose dpo or ipo",
    f"{OFFLINE} {DPO} wavalign.kl.text=0.1": "the penalty is over the policy's own answers",
    f"{OFFLINE} {DPO} {NO_KL} {ACTOR}.use_kl_loss=true": "scores the reference once",
    f"{OFFLINE} {DPO} {NO_KL} {ACTOR}.use_kl_loss=false actor_rollout_ref.rollout.n=4": "a pair has two answers",
    "wavalign.preference.pairs.beta=0.2": "=0.2 is not allowed: preference.objective=grpo does not use it",
    f"{DPO} wavalign.preference.pairs.beta=0": "=0 is not allowed: a number > 0",
    f"{DPO} wavalign.preference.advantage=rloo": "='rloo' is not allowed: preference.objective=dpo does not use it",
    "wavalign.preference.objective=ipo wavalign.preference.pairs.label_smoothing=0.1": "objective=ipo does not use it",
    f"{DPO} wavalign.preference.tokens=all wavalign.reward.routes.speech=[semantic]": "orders answers by the total",
    f"{DPO} {NO_KL} {ACTOR}.use_kl_loss=false": "compares with a reference policy",
    f"{DPO} {ACTOR}.clip_ratio_c=4": "=4 is not allowed: .*dpo does not use it: leave it at 3.0",
    f"{DPO} {ACTOR}.policy_loss.loss_mode=gspo": "has its own loss: leave it at vanilla",
    f"{DPO} algorithm.norm_adv_by_std_in_grpo=false": "norms no advantage",
    f"{DPO} {CORRECTION}.bypass_mode=true": "log-probs of the weights that it trains",
    "wavalign.anchor.tokens=none": CHOICE,
    "wavalign.boundary_modality=maybe": CHOICE,
    "wavalign.audio_dump.max_answers=2.5": "=2.5 is not allowed: an integer ≥ 0",
    "wavalign.watchdog.poll_interval_s=0": "=0 is not allowed: a number > 0",
    "wavalign.watchdog.step_timeout_s=never": "='never' is not allowed",
    "wavalign.constrained_decoding=1": "=1 is not allowed: true or false",
    "wavalign.audio_root=3": "=3 is not allowed: text, or null",
    "wavalign.layout=7": "=7 is not allowed: the name or the file of a layout",
    "wavalign.codec=mel_vq": "='mel_vq' is not allowed: a mapping",
    "wavalign=5": "=5 is not allowed: a mapping",
    # keys that are not there
    "wavalign.lambda_max=0.5": r"is not a key here.*Did you mean wavalign.mixing.lambda_max\?",
    "wavalign.mixing.lamda_max=0.5": r"is not a key here.*Did you mean wavalign.mixing.lambda_max\?",
    "wavalign.reward.routes.music=[semantic]": "is not a key here: one of text, speech",
    f"{ACTOR}.clip_ratio_lo=0.1": r"is not a key of verl's.*Did you mean actor_rollout_ref.actor.clip_ratio_low\?",
    # contradictions
    "wavalign.mixing.value=0.3": "=0.3 is not allowed: mixing.type=adaptive does not use it",
    "wavalign.mixing.type=fixed wavalign.mixing.value=null": r"=None is not allowed: a number in \[0, 1\]",
    "wavalign.mixing.type=fixed wavalign.mixing.value=0.5 wavalign.mixing.reward_sharpness=3": "does not use it",
    "wavalign.mixing.type=fixed wavalign.mixing.value=0.5 wavalign.mixing.lambda_max=1": "type=fixed does not use it",
    "wavalign.preference.speech_weight=0 wavalign.preference.text_weight=0": "no token has a weight.*Raise it, or set",
    "wavalign.preference.tokens=speech wavalign.preference.speech_weight=0": "with tokens=speech no token has a weight",
    "wavalign.anchor.speech_weight=0 wavalign.anchor.text_weight=0": "no token has a weight",
    "wavalign.reward.routes.text=[]": "a list of terms with a positive weight",
    "wavalign.reward.routes.speech=[charm]": r"positive weight \(semantic\)",
    f"{ACTOR}.use_kl_loss=false": "needs a reference policy",
    "actor_rollout_ref.rollout.n=1": "=1 is not allowed: an advantage compares at least 2",
    f"{ACTOR}.loss_scale_factor=100": "=100 is not allowed: it divides the sums of loss_agg_mode=seq-mean-token-sum",
    f"{ACTOR}.clip_ratio=0.3": "=0.3 is not allowed: clip_ratio_low and clip_ratio_high go before it",
    f"{ACTOR}.policy_loss.loss_mode=gspo {ACTOR}.clip_ratio_c=5.0": "part of policy_loss.loss_mode=vanilla, not",
    "wavalign.preference.tokens=all wavalign.reward.routes.text=[semantic] "
    f"{ACTOR}.policy_loss.loss_mode=geo_mean": "one advantage per answer",
    "algorithm.adv_estimator=grpo": "use wavalign with trainer_mode=wavalign",
    "algorithm.adv_estimator=rloo": "wavalign.preference.advantage=rloo",
    "trainer.v1.trainer_mode=sync": "set it to wavalign",
    f"{CORRECTION}.bypass_mode=true {CORRECTION}.rollout_rs=seq_mean_k1": "bypass_mode=true does not compute",
    f"{CORRECTION}.rollout_rs_threshold=2": "it is the threshold of rollout_rs",
    f"{CORRECTION}.rollout_is=token": "does not apply it",
    # verl's keys: types, bounds, and values that we do not have
    f"{ACTOR}.clip_ratio_c=1.0": "=1.0 is not allowed: a number > 1",
    f"{ACTOR}.clip_ratio_low=narrow": "='narrow' is not allowed: a number ≥ 0, or null",
    f"{ACTOR}.entropy_coeff=null": "=None is not allowed: a number",
    f"{ACTOR}.loss_agg_mode=token-sum": "is not allowed: one of seq-mean-token-mean, token-mean",
    f"{ACTOR}.policy_loss.loss_mode=clip_cov": "is not allowed: one of vanilla, gspo, geo_mean",
    f"{ACTOR}.ppo_epochs=0": "=0 is not allowed: an integer ≥ 1",
    f"{ACTOR}.strategy=megatron": "is not allowed: one of fsdp, fsdp2",
    f"{ACTOR}.shuffle=true": "tear mini-batches apart",
    "actor_rollout_ref.rollout.n=four": "='four' is not allowed: an integer ≥ 1",
    "actor_rollout_ref.rollout.temperature=0": "=0 is not allowed: a number > 0",
    "data.train_batch_size=many": "='many' is not allowed: an integer",
    "trainer.total_training_steps=ten": "='ten' is not allowed: an integer ≥ 1, or null",
    "algorithm.norm_adv_by_std_in_grpo=maybe": "='maybe' is not allowed: true or false",
    "algorithm.use_kl_in_reward=true": "use wavalign.kl",
    # verl's keys that nothing reads
    f"{ACTOR}.kl_loss_coef=0.01": f"=0.01 {NOTHING}.*set wavalign.kl.text",
    f"{ACTOR}.kl_loss_type=k1": f"='k1' {NOTHING}.*penalty is k3",
    f"{ACTOR}.grad_clip=0.5": f"{NOTHING}.*optim.clip_grad",
    f"{ACTOR}.tau_pos=2.0": f"{NOTHING}.*loss_mode",
    f"{ACTOR}.policy_loss.dro_beta=0.1": f"{NOTHING}.*loss_mode",
    f"{ACTOR}.data_loader_seed=7": f"{NOTHING}.*data.seed",
    f"{ACTOR}.use_torch_compile=false": f"{NOTHING}.*fsdp_config.use_torch_compile",
    f"{ACTOR}.freeze_vision_tower=true": NOTHING,
    f"{ACTOR}.ppo_micro_batch_size=4": f"{NOTHING}.*ppo_micro_batch_size_per_gpu",
    "algorithm.gamma=0.9": f"{NOTHING}.*nothing is discounted",
    "algorithm.kl_ctrl.kl_coef=0.1": f"{NOTHING}.*wavalign.kl",
    "algorithm.use_pf_ppo=true": NOTHING,
    f"{CORRECTION}.loss_type=reinforce": f"{NOTHING}.*loss_mode",
    "reward.custom_reward_function.path=mine.py": f"{NOTHING}.*wavalign.reward.terms",
    "reward.reward_model.enable=true": f"{NOTHING}.*type: judge",
    "reward.reward_manager.source=register": "only SpokenRewardManager",
    "custom_reward_function.path=mine.py": f"{NOTHING}.*wavalign.reward.terms",
    "reward_model.reward_manager=dapo": f"{NOTHING}.*wavalign.reward.terms",
    "critic.enable=true": f"{NOTHING}.*nothing learns values",
    "critic.optim.lr=1.0": NOTHING,
    "trainer.critic_warmup=3": "there is no critic",
    "distillation.enabled=true": f"{NOTHING}.*the anchor",
    "distillation.distillation_loss.topk=8": NOTHING,
}
RIGHT = (
    "wavalign.mixing.type=fixed wavalign.mixing.value=1",
    "wavalign.reward.scale=[0,1]",
    "wavalign.kl.text=0 wavalign.kl.speech=0 actor_rollout_ref.actor.use_kl_loss=false",
    f"{ACTOR}.clip_ratio=0.3 {ACTOR}.clip_ratio_low=null {ACTOR}.clip_ratio_high=null",
    f"{ACTOR}.clip_ratio_high=0.28 {ACTOR}.clip_ratio_c=10.0",
    f"{ACTOR}.policy_loss.loss_mode=gspo",
    f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm {ACTOR}.loss_scale_factor=96",
    "algorithm.norm_adv_by_std_in_grpo=false",
    "wavalign.preference.advantage=rloo",
    f"{CORRECTION}.rollout_rs=seq_mean_k1 {CORRECTION}.rollout_rs_threshold='0.5_2.0'",
    "critic.enable=false",
    f"{ACTOR}.optim.lr=0.001 {ACTOR}.fsdp_config.forward_prefetch=true {ACTOR}.profiler.enable=true",
    "algorithm.filter_groups.enable=true reward.num_workers=4",
)


def composed(*overrides: str) -> DictConfig:
    import verl  # noqa: F401  (loads the plugin)

    os.environ["VERL_PLATFORM"] = "cpu"
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", list(overrides))


@pytest.fixture(scope="module")
def default() -> DictConfig:
    return composed("+recipe=wavalign")


def changed(config: DictConfig, overrides: str) -> DictConfig:
    """``config`` with KEY=VALUE ..., as the command line would have it."""
    config = config.copy()
    with open_dict(config):
        for override in overrides.split():
            key, _, value = override.partition("=")
            OmegaConf.update(config, key, yaml.safe_load(value), merge=False)
    return config


def line_of(method: Callable[..., None], config: DictConfig) -> str:
    with pytest.raises(SystemExit) as caught:
        method(config)
    line = str(caught.value)
    assert line.startswith("wavalign: ") and len(line.splitlines()) == 1
    return line


def refusal(config: DictConfig) -> str:
    from wavalign_ext.checks.preflight import Preflight

    return line_of(Preflight().on_job_start, config)


@pytest.mark.parametrize("overrides", WRONG)
def test_a_wrong_configuration_is_named(
    default: DictConfig, overrides: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("wavalign_ext.checks.preflight._build_pocket", lambda _: pytest.fail("it slipped through"))
    key, says = overrides.split()[-1].partition("=")[0], WRONG[overrides]
    line = refusal(changed(default, overrides))
    assert re.search(re.escape(key) + (says if says[0] in "=\\" else f".*{says}"), line), line
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("overrides", RIGHT)
def test_what_acts_passes(default: DictConfig, overrides: str) -> None:
    from wavalign_ext.checks.preflight import check_config

    check_config(changed(default, overrides))


def test_several_problems_are_all_named(default: DictConfig) -> None:
    line = refusal(changed(default, "wavalign.kl.text=x wavalign.mixing.lambda_max=2 wavalign.audio_dump.number=1"))
    assert "kl.text='x'" in line and "(and 2 more: wavalign.mixing.lambda_max, wavalign.audio_dump.number)" in line
    line = refusal(changed(default, f"algorithm.gamma=0.5 {ACTOR}.tau_pos=2"))
    assert f"{ACTOR}.tau_pos=2 {NOTHING}" in line and "(and 1 more: algorithm.gamma)" in line


# --- any key, any wrong type --------------------------------------------------------------------------------------

TEXT = st.text(alphabet=st.characters(exclude_characters="$?", exclude_categories=["Cs"]))
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1000, 1000),
    st.floats(),
    TEXT,
    st.lists(st.one_of(st.none(), st.booleans(), st.integers(0, 9)), min_size=1),
    st.dictionaries(st.from_regex(r"\A[a-z]{1,9}\Z"), st.integers(0, 9), min_size=1),
)
KEYS = dict(sections(WavAlignConfig))
NULL = {
    "input_codec",
    "audio_root",
    "mixing.value",
    "mixing.reward_threshold",
    "mixing.reward_sharpness",
    "mixing.variance_scale",
}
NULL |= {"audio_sampling.top_k", "audio_sampling.top_p", "preference.pairs.min_gap", "reward.terms"}
NULL |= {"reward.routes.text", "reward.routes.speech", "watchdog.step_timeout_s"}
# By the name of a key: the types that it may have, apart from null. Written out, so that it does not follow the code.
TYPES: dict[str, tuple[type, ...]] = {"layout": (str, dict), "codec": (dict,), "input_codec": (dict,), "terms": (dict,)}
TYPES |= {"audio_root": (str,), "boundary_modality": (str,), "tokens": (str,), "type": (str,), "advantage": (str,)}
TYPES |= {"top_k": (int,), "max_answers": (int,), "scale": (), "objective": (str,)}


def is_wrong(key: str, value: Any) -> bool:
    if value is None:
        return key not in NULL
    name = key.rpartition(".")[2]
    if key.startswith("reward.routes."):
        return True  # none of VALUES is a list of terms
    if isinstance(KEYS[key].annotation, type) and issubclass(KEYS[key].annotation, Section):
        return not isinstance(value, dict)
    kinds = (bool,) if KEYS[key].annotation is bool else TYPES.get(name, (int, float))
    if isinstance(value, bool) or bool in kinds:
        return not (isinstance(value, bool) and bool in kinds)
    return not isinstance(value, kinds) or (isinstance(value, float) and not abs(value) < float("inf"))


@pytest.fixture(scope="module")
def node(default: DictConfig) -> Any:
    return OmegaConf.to_container(default.wavalign, resolve=True)


def with_key(node: Any, key: str, value: Any) -> DictConfig:
    node = copy.deepcopy(node)
    *path, name = key.split(".")
    parent = node
    for part in path:
        parent = parent[part]
    parent[name] = value
    return OmegaConf.create({"wavalign": node})


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from(sorted(KEYS)), value=VALUES)
def test_any_key_with_any_wrong_type_is_named(node: Any, key: str, value: Any) -> None:
    if is_wrong(key, value):
        assert f"wavalign.{key}" in refusal(with_key(node, key, value))


@settings(max_examples=150, deadline=None)
@given(
    parent=st.sampled_from(["", *(key for key, field in KEYS.items() if key in ("mixing", "kl", "reward", "anchor"))]),
    name=st.from_regex(r"\A[a-z][a-z_]{0,15}\Z"),
    value=VALUES,
)
def test_any_unknown_key_is_named(node: Any, parent: str, name: str, value: Any) -> None:
    key = f"{parent}.{name}".strip(".")
    if key not in KEYS:
        assert f"wavalign.{key}" in refusal(with_key(node, key, value))


@settings(max_examples=15, deadline=None)
@given(
    node=st.sampled_from([ACTOR, f"{ACTOR}.policy_loss", "algorithm", "reward", "critic", "distillation"]),
    name=st.from_regex(r"\A[a-z]{3,9}_\Z"),  # no key of verl's ends so
)
def test_any_unknown_key_of_verl_s_nodes_is_named(default: DictConfig, node: str, name: str) -> None:
    assert f"{node}.{name}=1 is not a key of verl's" in refusal(changed(default, f"{node}.{name}=1"))


# --- the boundary -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_passes_and_has_a_summary(recipe: str) -> None:
    from wavalign_ext.checks.preflight import _summary, check_config

    config = composed(f"+recipe={recipe}")
    summary = _summary(config, check_config(config), {"train.parquet": 3})
    assert all(name in summary for name in config.wavalign.reward.terms or {})  # null where nothing is scored
    assert "train.parquet 3 rows" in summary


def test_there_are_ten_recipes() -> None:
    assert {"wavalign", "grpo_joint", "sft_anchor"} <= set(RECIPES)


def test_what_a_recipe_leaves_open_is_asked_for() -> None:
    line = refusal(composed("+recipe=wavalign_vita_audio"))
    assert "wavalign.codec.path, wavalign.reward.terms.holistic.endpoint.url" in line and "command line" in line


@pytest.mark.parametrize(
    "error", [KeyError("weight"), AttributeError("gone"), ZeroDivisionError(), RuntimeError("a\nb")]
)
def test_whatever_a_check_raises_ends_the_run(
    default: DictConfig, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def breaks(*_: Any) -> None:
        raise error

    monkeypatch.setattr("wavalign_ext.checks.preflight.check_model", breaks)
    monkeypatch.setattr("wavalign_ext.checks.preflight._build_pocket", lambda _: None)
    line = refusal(default)
    assert f"{type(error).__name__} in breaks (test_wrong_configurations.py:" in line
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    refusal(default)
    assert "Traceback" in capsys.readouterr().err


def test_an_unreadable_step_number_ends_the_run(default: DictConfig, tmp_path: Path) -> None:
    from wavalign_ext.checks.preflight import Preflight

    (tmp_path / "latest_checkpointed_iteration.txt").write_text("forty")
    config = changed(default, f"trainer.default_local_dir={tmp_path}")
    assert "latest_checkpointed_iteration.txt='forty'" in line_of(Preflight().on_run_start, config)


def test_every_callback_ends_with_one_line(default: DictConfig) -> None:
    from hydra.experimental.callback import Callback

    from wavalign_ext.checks.preflight import Preflight

    ours = [name for name in vars(Preflight) if name.startswith("on_")]
    assert set(ours) <= set(vars(Callback))
    empty = OmegaConf.create({})
    for name in ours:
        assert line_of(lambda config, name=name: getattr(Preflight(), name)(config, job_return=None), empty)
