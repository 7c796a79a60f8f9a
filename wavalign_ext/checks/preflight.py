"""What is checked, built and printed before Ray starts: a Hydra callback that the recipes install.

A bad value ends the run here with one line that names it; Hydra only warns about a callback's ordinary exceptions, so
whatever a check raises leaves as a :class:`SystemExit`. With ``HYDRA_FULL_ERROR=1`` its traceback is printed as well.
"""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.utils import JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from wavalign_ext.checks.preflight_data import as_list, check_data
from wavalign_ext.checks.preflight_model import check_model
from wavalign_ext.checks.preflight_run import check_ray_address, check_resume, stop_if_finished
from wavalign_ext.config import ConfigError, WavAlignConfig
from wavalign_ext.integration import run
from wavalign_ext.integration.guard import Guard
from wavalign_ext.integration.patches import PatchError
from wavalign_ext.schema import one_line, plain, refusal
from wavalign_ext.verl_keys import OFFLINE, VerlKeys, check_verl_keys, stock_config

__all__ = ["Preflight", "check_config", "check_data", "check_model"]

FEEDER = "wavalign_ext.trainer.offline.PairFeeder"
F = TypeVar("F", bound=Callable[..., None])


def ends_with_one_line(method: F) -> F:
    """Whatever ``method`` raises ends the run with one line.

    What a check says to the user is a ValueError, OSError or ImportError. Anything else was not foreseen, and the line
    says what it is and where it came up. Libraries written in Rust panic with a BaseException.
    """

    @functools.wraps(method)
    def checked(*args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except (SystemExit, GeneratorExit):
            raise
        except KeyboardInterrupt:
            print("wavalign: stopped before Ray started", file=sys.stderr, flush=True)
            raise SystemExit(130) from None
        except BaseException as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exc()
            raise SystemExit(f"wavalign: {_line(error)}") from error

    return checked  # type: ignore[return-value]


def _line(error: BaseException) -> str:
    text = one_line(str(error)).removeprefix("wavalign: ")
    if text and isinstance(error, ValueError | OSError | ImportError | PatchError):
        return text
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{where.name} ({Path(where.filename).name}:{where.lineno})"
    return f"{type(error).__name__} in {place}: {text or 'no message'}. HYDRA_FULL_ERROR=1 shows how it came there"


class Preflight(Callback):
    """``hydra.callbacks.wavalign`` of every WavAlign recipe."""

    guard: Guard | None = None

    @ends_with_one_line
    def on_run_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        """Before Hydra copies the configuration for verl, and writes it over that of a run that has ended.

        Hydra gives ``config_name``: the folder is then taken, and signals are, until the process ends.
        """
        if config_name is not None:
            self.guard = Guard(config.trainer.default_local_dir)
            self.guard.take_signals()
            run.give_temp(config, self.guard)
        run.begin(config)
        stop_if_finished(config)

    @ends_with_one_line
    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Check ``config`` whole. Ends the process with one line on the first thing that cannot work."""
        wav = check_config(config)
        _check_given(config)
        check_ray_address(config)
        _build_pocket(config)
        tokenizer = check_model(config, wav)
        rows = check_data(config, wav, tokenizer)
        check_resume(config)
        print(_summary(config, wav, rows), flush=True)
        if self.guard is not None:
            self.guard.watch(wav.watchdog)

    @ends_with_one_line
    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Clear away, and say where the results are or why there are none."""
        if self.guard is not None:
            failed = job_return.status == JobStatus.FAILED
            self.guard.finish(job_return._return_value if failed else None)
        folder = config.trainer.default_local_dir
        print(f"wavalign: results in {folder}: rollouts/ and validation/ (text, scores, WAV), tensorboard/", flush=True)


def check_config(config: DictConfig) -> WavAlignConfig:
    """Check our keys, and those of verl's that the method depends on. Raises :class:`ConfigError`."""
    node: Any = config.get("wavalign")
    wav = WavAlignConfig.from_mapping(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
    keys = VerlKeys.of(config)
    for rules in (_trainer_rules, _loss_rules, _correction_rules, _pair_rules, _offline_rules):
        for key, (ok, why) in rules(wav, keys).items():
            if not ok:
                raise ConfigError(refusal(key, OmegaConf.select(config, key), why))
    check_verl_keys(config)
    return wav


Rules = dict[str, tuple[bool, str]]  # by key: whether its value can stand, and what to do where it cannot


def _trainer_rules(wav: WavAlignConfig, keys: VerlKeys) -> Rules:
    trainer, algorithm, rollout = keys.trainer, keys.algorithm, keys.actor_rollout_ref.rollout
    rloo = "rloo" in algorithm.adv_estimator
    return {
        "trainer.use_v1": (trainer.use_v1, "the trainer wavalign is one of verl's V1 trainers: set it to true"),
        "trainer.v1.trainer_mode": (
            trainer.v1.trainer_mode in ("wavalign", OFFLINE),
            f"set it to wavalign, as the recipes do, or to {OFFLINE} for pairs from the data",
        ),
        "algorithm.adv_estimator": (
            algorithm.adv_estimator == "wavalign",
            "use wavalign with trainer_mode=wavalign" + ", and wavalign.preference.advantage=rloo" * rloo,
        ),
        "reward.reward_manager.source": (
            keys.reward.reward_manager.source == "importlib",
            "only SpokenRewardManager, or a class of yours derived from it, scores speech: set it to importlib",
        ),
        "trainer.critic_warmup": (trainer.critic_warmup == 0, "there is no critic: set it to 0"),
        "actor_rollout_ref.actor.strategy": (
            trainer.device != "cpu" or keys.actor_rollout_ref.actor.strategy == "fsdp2",
            "on a CPU there is an engine for fsdp2 only",
        ),
        "actor_rollout_ref.rollout.n": (
            rollout.n >= 2 or not wav.uses_preference,
            "an advantage compares at least 2 rollouts of a prompt",
        ),
        "trainer.val_before_train": (
            trainer.val_before_train or not trainer.val_only,
            "trainer.val_only ends the run after that validation, and without it verl trains: set it to true",
        ),
        "algorithm.filter_groups.metric": (
            not (algorithm.filter_groups and algorithm.filter_groups.enable)
            or algorithm.filter_groups.metric in wav.reward.group_metrics,
            f"one of {', '.join(wav.reward.group_metrics)}",
        ),
    }


def _loss_rules(wav: WavAlignConfig, keys: VerlKeys) -> Rules:
    actor, stock = keys.actor_rollout_ref.actor, VerlKeys.of(stock_config()).actor_rollout_ref.actor
    mode, kl = actor.policy_loss.loss_mode, wav.kl
    return {
        "actor_rollout_ref.actor.use_kl_loss": (
            actor.use_kl_loss or not wav.referenced or keys.offline,
            f"wavalign.kl (text {kl.text}, speech {kl.speech}) needs a reference policy: set it to true, or both "
            "coefficients to 0"
            if kl.text or kl.speech
            else f"wavalign.preference.objective={wav.preference.objective} compares with a reference policy: set it "
            "to true, or wavalign.preference.pairs.reference_free=true",
        ),
        "actor_rollout_ref.actor.clip_ratio": (
            None in (actor.clip_ratio_low, actor.clip_ratio_high)
            or actor.clip_ratio in (stock.clip_ratio, actor.clip_ratio_low, actor.clip_ratio_high),
            "clip_ratio_low and clip_ratio_high go before it: set these, or set them to null",
        ),
        "actor_rollout_ref.actor.clip_ratio_c": (
            mode == "vanilla" or actor.clip_ratio_c == stock.clip_ratio_c,
            f"the dual clip is part of policy_loss.loss_mode=vanilla, not of {mode}: leave it at {stock.clip_ratio_c}",
        ),
        "actor_rollout_ref.actor.policy_loss.loss_mode": (
            mode != "geo_mean" or not wav.reward.routed or wav.preference.tokens != "all",
            "it has one advantage per answer, but wavalign.reward.routes gives text and speech one each: choose gspo, "
            "or take the routes out",
        ),
        "actor_rollout_ref.actor.loss_scale_factor": (
            actor.loss_scale_factor is None or actor.loss_agg_mode == "seq-mean-token-sum-norm",
            "it divides the sums of loss_agg_mode=seq-mean-token-sum-norm: choose that, or set it to null",
        ),
        "actor_rollout_ref.actor.shuffle": (
            not actor.shuffle,
            "each rank would shuffle by itself and tear mini-batches apart: set it to false",
        ),
        "algorithm.use_kl_in_reward": (
            not keys.algorithm.use_kl_in_reward,
            "use wavalign.kl, which knows the modalities, and set this to false",
        ),
    }


def _correction_rules(_: WavAlignConfig, keys: VerlKeys) -> Rules:
    given, logp = keys.algorithm.rollout_correction, keys.actor_rollout_ref.rollout.calculate_log_probs
    node = "algorithm.rollout_correction"
    return {
        f"{node}.rollout_is": (given.rollout_is is None, "the trainer wavalign does not apply it: set it to null"),
        f"{node}.rollout_rs": (
            given.rollout_rs is None or (logp and not given.bypass_mode),
            "it compares rollout.calculate_log_probs=true with log-probs that bypass_mode=true does not compute: "
            "change these, or set it to null",
        ),
        f"{node}.rollout_rs_threshold": (
            given.rollout_rs_threshold is None or given.rollout_rs is not None,
            "it is the threshold of rollout_rs, which is null: set both or neither",
        ),
        f"{node}.bypass_mode": (
            not given.bypass_mode or logp,
            "the rollout's log-probs take the place of the old ones: set rollout.calculate_log_probs=true",
        ),
    }


def _pair_rules(wav: WavAlignConfig, keys: VerlKeys) -> Rules:
    """What an objective over pairs leaves nothing to do for, and what would change the tokens that it compares."""
    if not wav.preference.paired:
        return {}
    actor, stock = keys.actor_rollout_ref.actor, VerlKeys.of(stock_config()).actor_rollout_ref.actor
    name = f"wavalign.preference.objective={wav.preference.objective}"
    unused = ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "entropy_coeff")
    rules = {
        f"actor_rollout_ref.actor.{key}": (
            getattr(actor, key) == getattr(stock, key),
            f"{name} does not use it: leave it at {plain(getattr(stock, key))}",
        )
        for key in unused
    }
    return rules | {
        "actor_rollout_ref.actor.policy_loss.loss_mode": (
            actor.policy_loss.loss_mode == "vanilla",
            f"{name} has its own loss: leave it at vanilla",
        ),
        "algorithm.norm_adv_by_std_in_grpo": (
            keys.algorithm.norm_adv_by_std_in_grpo,
            f"{name} compares two answers, and norms no advantage: leave it at true",
        ),
        "algorithm.rollout_correction.rollout_rs": (
            keys.algorithm.rollout_correction.rollout_rs is None,
            f"{name} compares whole answers, and this takes tokens out of them: set it to null",
        ),
        "algorithm.rollout_correction.bypass_mode": (
            not keys.algorithm.rollout_correction.bypass_mode,
            f"{name} compares by the log-probs of the weights that it trains: set it to false",
        ),
    }


def _offline_rules(wav: WavAlignConfig, keys: VerlKeys) -> Rules:
    """Nothing is sampled: what there is about sampling says what the pairs are."""
    if not keys.offline:
        return {}
    rollout, mode = keys.actor_rollout_ref.rollout, f"trainer.v1.trainer_mode={OFFLINE}"
    kl = "the penalty is over the policy's own answers, and here β of wavalign.preference.pairs holds it: set it to 0"
    return {
        "wavalign.preference.objective": (
            wav.preference.paired,
            f"{mode} trains on pairs from the data: choose dpo or ipo, or trainer_mode=wavalign",
        ),
        "wavalign.reward.terms": (not wav.reward.terms, f"{mode} scores nothing: set it to null"),
        "wavalign.kl.text": (wav.kl.text == 0, kl),
        "wavalign.kl.speech": (wav.kl.speech == 0, kl),
        "actor_rollout_ref.actor.use_kl_loss": (
            not keys.actor_rollout_ref.actor.use_kl_loss,
            f"{mode} scores the reference once, by the weights that it starts from: set it to false",
        ),
        "actor_rollout_ref.rollout.n": (rollout.n == 2, "a pair has two answers: set it to 2"),
        "actor_rollout_ref.rollout.temperature": (rollout.temperature == 1, "nothing is sampled: set it to 1.0"),
        "actor_rollout_ref.rollout.calculate_log_probs": (
            not rollout.calculate_log_probs,
            "there is no rollout engine to compare with: set it to false",
        ),
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class": (
            rollout.agent.agent_loop_manager_class == FEEDER,
            f"what stands in for the agent loops is {FEEDER}: set it so, as the recipes do",
        ),
    }


def _check_given(config: DictConfig) -> None:
    """Refuse what a recipe leaves to the user with ???."""
    missing = sorted(OmegaConf.missing_keys(config.wavalign))
    if missing:
        raise ConfigError(f"{', '.join(missing)}: the recipe leaves this to you: give it on the command line")


def _build_pocket(config: DictConfig) -> None:
    """Build the embedded default and the models over it, unless they are there or nothing in the run uses them."""
    from wavalign_ext import pocket
    from wavalign_ext.models.ears import pocket as ears
    from wavalign_ext.parallel import pocket as parallel

    folder = pocket.pocket_dir()
    used = [config.actor_rollout_ref.model.path, *as_list(config.data.train_files), *as_list(config.data.val_files)]
    inside = [Path(path).name for path in used if str(path).startswith(str(folder))]
    if inside:
        from wavalign_ext.pocket.build import build

        _build_once(folder, build)
    if any(name.startswith("pairs_") for name in inside):
        from wavalign_ext.data.pairs.targets import make_pocket_pairs

        make_pocket_pairs(folder / "data")
    for made in (parallel, ears):
        if any(str(path).startswith(str(made.folder())) for path in used):
            _build_once(made.folder(), made.build)


def _build_once(folder: Path, build: Callable[[], Any]) -> None:
    if (folder / "report.json").is_file():  # looked at before a lock is taken: its place may be read-only
        return
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        FileLock(folder.with_name(folder.name + ".lock")).acquire(timeout=0).lock.release()
    except Timeout:
        print(f"wavalign: another process builds {folder}: waiting for it", flush=True)
    build()


def _summary(config: DictConfig, wav: WavAlignConfig, rows: dict[str, int]) -> str:
    rollout, actor, layout = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor, wav.layout
    mixing = f"fixed {wav.mixing.value}" if wav.mixing.type == "fixed" else f"adaptive, at most {wav.mixing.lambda_max}"
    how = f"{wav.preference.advantage}, {actor.policy_loss.loss_mode}"
    if wav.preference.paired:
        how = f"{wav.preference.objective} with β {wav.preference.pairs.beta}"
    preference = f"{how}, on {wav.preference.tokens} tokens"
    lines = {
        "model": config.actor_rollout_ref.model.path,
        "layout": layout if isinstance(layout, str) else layout.get("name"),
        "data": ", ".join(f"{Path(name).name} {count} rows" for name, count in rows.items()),
        "rollouts": "none: pairs of the data"
        if config.trainer.v1.trainer_mode == OFFLINE
        else f"{config.data.train_batch_size} prompts × {rollout.n} at temperature {rollout.temperature}",
        "preference": f"{preference}, KL text {wav.kl.text}, speech {wav.kl.speech}",
        "anchor": f"{wav.anchor.tokens} tokens" if wav.uses_anchor else "off (λ = 1)",
        "λ": mixing,
        "reward": ", ".join(f"{name} {term.get('weight', 1)}" for name, term in wav.reward.terms.items()),
        "output": config.trainer.default_local_dir,
    }
    return "\n".join(f"wavalign: {name:<11}{value}" for name, value in lines.items())
