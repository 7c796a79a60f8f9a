"""Which keys of verl's act under our trainer: no key that a user sets may do nothing, or something else than in verl.

:data:`ACTS` and :data:`REMEDIES` cover the nodes whose meaning our loss, advantage and rewards take over; in the others
(rollout, data, trainer, ...) verl itself reads its keys. A composed key there that differs from verl's stock
configuration must act, or the run is refused by name. :class:`VerlKeys` is what we read ourselves. Read off verl 0.9.1.
Importing this module needs neither torch nor verl.
"""

import functools
from collections.abc import Iterator
from importlib import resources
from typing import Any, Literal, Self

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field

from wavalign_ext.schema import ConfigError, Section, build, did_you_mean, listed, shown

# Keys that act, and everything below them; by node.
ACTS: dict[str, tuple[str, ...]] = {
    "actor_rollout_ref.actor": (
        # our loss and update
        *("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "policy_loss.loss_mode", "entropy_coeff"),
        *("loss_agg_mode", "loss_scale_factor", "use_kl_loss", "calculate_entropy", "shuffle"),
        *("ppo_epochs", "ppo_mini_batch_size", "ppo_micro_batch_size_per_gpu", "ppo_max_token_len_per_gpu"),
        # verl's engine
        *("_target_", "strategy", "use_dynamic_bsz", "fsdp_config", "optim", "checkpoint", "profiler"),
        *("ulysses_sequence_parallel_size", "pad_to_length", "entropy_checkpointing"),
        *("entropy_from_logits_with_chunking", "entropy_from_logits_chunk_size"),
    ),
    "actor_rollout_ref.ref": (
        *("_target_", "strategy", "fsdp_config", "profiler", "ulysses_sequence_parallel_size", "pad_to_length"),
        *("log_prob_micro_batch_size_per_gpu", "log_prob_use_dynamic_bsz", "log_prob_max_token_len_per_gpu"),
    ),
    "algorithm": (
        *("_target_", "adv_estimator", "norm_adv_by_std_in_grpo", "use_kl_in_reward", "filter_groups"),
        *("rollout_correction.bypass_mode", "rollout_correction.rollout_is"),
        *("rollout_correction.rollout_rs", "rollout_correction.rollout_rs_threshold"),
    ),
    "reward": ("_target_", "num_workers", "reward_manager"),
    "reward_model": ("num_workers",),  # verl's older place of reward.num_workers, as the next two nodes are of others
    "custom_reward_function": (),
    "sandbox_fusion": (),
    "critic": (),
    "distillation": (),
}
OFFLINE = "wavalign_offline"  # the trainer for pairs of the data
TERMS = "score answers with wavalign.reward.terms.NAME={type: 'your.module:NAME'} (docs/rewards.md)"
JUDGE = "score answers with wavalign.reward.terms.NAME={type: judge, ...} (docs/rewards.md)"
KL = "set wavalign.kl.text and wavalign.kl.speech, whose penalty is k3"
LOSSES = "choose policy_loss.loss_mode vanilla, gspo or geo_mean"
CORRECTION = "the trainer wavalign has no importance weights for rollouts: leave it"
# What to do instead of a key that does not act; the nearest key above it decides, here and in ACTS.
REMEDIES = {
    "actor_rollout_ref.actor": "leave it at verl's default",
    "actor_rollout_ref.actor.grad_clip": "set actor_rollout_ref.actor.optim.clip_grad, which verl's engine reads",
    "actor_rollout_ref.actor.kl_loss_coef": KL,
    "actor_rollout_ref.actor.kl_loss_type": KL,
    "actor_rollout_ref.actor.policy_loss": LOSSES,
    "actor_rollout_ref.actor.tau_pos": LOSSES,
    "actor_rollout_ref.actor.tau_neg": LOSSES,
    "actor_rollout_ref.actor.ppo_micro_batch_size": "set ppo_micro_batch_size_per_gpu",
    "actor_rollout_ref.actor.rollout_n": "set actor_rollout_ref.rollout.n",
    "actor_rollout_ref.actor.data_loader_seed": "rows are not shuffled within a step; set data.seed",
    "actor_rollout_ref.actor.use_torch_compile": "set actor_rollout_ref.actor.fsdp_config.use_torch_compile",
    "actor_rollout_ref.actor.use_fused_kernels": "set actor_rollout_ref.model.use_fused_kernels",
    "actor_rollout_ref.actor.use_remove_padding": "set actor_rollout_ref.model.use_remove_padding",
    "actor_rollout_ref.actor.qat": "set actor_rollout_ref.actor.fsdp_config.qat, which verl's engine reads",
    "actor_rollout_ref.actor.checkpoint.async_save": "verl's FSDP engine saves before it goes on; leave it at false",
    "actor_rollout_ref.actor.optim.total_training_steps": "set trainer.total_training_steps",
    "actor_rollout_ref.ref": "leave it at verl's default",
    "actor_rollout_ref.ref.log_prob_micro_batch_size": "set log_prob_micro_batch_size_per_gpu",
    "actor_rollout_ref.ref.use_torch_compile": "set actor_rollout_ref.ref.fsdp_config.use_torch_compile",
    "algorithm": "leave it at verl's default",
    "algorithm.gamma": "an answer has one reward, at its end, and nothing is discounted",
    "algorithm.lam": "an answer has one reward, at its end, and nothing is discounted",
    "algorithm.kl_penalty": KL,
    "algorithm.kl_ctrl": KL,
    "algorithm.rollout_correction": CORRECTION,
    "algorithm.rollout_correction.loss_type": LOSSES,
    "reward": TERMS,
    "reward.reward_model": JUDGE,
    "reward_model": JUDGE,
    "reward_model.reward_manager": TERMS,
    "custom_reward_function": TERMS,
    "sandbox_fusion": TERMS,
    "critic": "the advantage is relative to the prompt's other rollouts, and nothing learns values",
    "distillation": "the supervised side is the anchor: wavalign.anchor, and target_text and target_speech in the data",
}
HARMLESS = {"critic.enable": False, "reward_model.enable": False}  # what happens anyway, said aloud


_TABLE: dict[str, str | None] = {f"{node}.{name}": None for node, names in ACTS.items() for name in names} | REMEDIES


def check_verl_keys(config: DictConfig) -> None:
    """Refuse a composed key that does not act. Raises :class:`ConfigError` for the first, naming the others."""
    stock, problems = stock_config(), {}
    for node in ACTS:
        for key, siblings in _changes(_raw(config, node), _raw(stock, node), node):
            value = _value(config, key)
            if siblings is None and value == _value(stock, key):
                continue  # only written differently
            if (problem := _problem(key, value, siblings)) is not None:
                problems[key] = problem
    if problems:
        first, *others = problems
        raise ConfigError(problems[first] + listed(others))


@functools.cache
def stock_config() -> DictConfig:
    """verl's ``ppo_trainer`` without any recipe, composed by verl: inside a run, Hydra cannot compose again."""
    file = resources.files("verl.trainer.config") / "_generated_ppo_trainer.yaml"
    config = OmegaConf.create(file.read_text())
    assert isinstance(config, DictConfig)
    return config


def _changes(ours: Any, theirs: Any, key: str) -> Iterator[tuple[str, list[str] | None]]:
    """(key, None) where a value is written differently; (key, the keys that verl has there) where verl has none."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        yield key, None
        return
    for name, value in ours.items():
        if name not in theirs:
            yield f"{key}.{name}", list(theirs)
        elif value != theirs[name]:
            yield from _changes(value, theirs[name], f"{key}.{name}")


def _problem(key: str, value: Any, siblings: list[str] | None) -> str | None:
    """The line for a key that differs from verl's, or None where it acts."""
    nearest = key
    while nearest not in _TABLE:
        nearest = nearest.rpartition(".")[0]
    if _TABLE[nearest] is None or (key in HARMLESS and value is HARMLESS[key]):
        return None
    if siblings is not None:
        hint = did_you_mean(key, [f"{key.rpartition('.')[0]}.{name}" for name in siblings])
        return f"{key}={shown(value)} is not a key of verl's, and nothing reads it: take it out.{hint}"
    return f"{key}={shown(value)} would do nothing under the trainer wavalign: {_TABLE[nearest]}."


def _raw(config: DictConfig, key: str) -> Any:
    """A node with its interpolations as they are written."""
    node = OmegaConf.select(config, key)
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def _value(config: DictConfig, key: str) -> Any:
    node = OmegaConf.select(config, key)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


# --- what we read ourselves ---------------------------------------------------------------------------------------


class _Read(Section):
    """The keys of one of verl's nodes that we read; the others pass."""

    model_config = ConfigDict(extra="ignore")


class PolicyLossKeys(_Read):
    loss_mode: Literal["vanilla", "gspo", "geo_mean"]
    """The surrogate that the policy gradient climbs: PPO's, GSPO's or GMPO's; see docs/method.md."""


class ActorKeys(_Read):
    strategy: Literal["fsdp", "fsdp2"]
    """The engine that trains."""
    clip_ratio: float = Field(ge=0)
    """ε of the clip, on a side that has no bound of its own."""
    clip_ratio_low: float | None = Field(ge=0)
    """How far below 1 the ratio of new to old policy counts. Null: ``clip_ratio``."""
    clip_ratio_high: float | None = Field(ge=0)
    """How far above 1 the ratio counts. Null: ``clip_ratio``."""
    clip_ratio_c: float = Field(gt=1)
    """c of the dual clip, with ``loss_mode=vanilla``: the most that an answer worse than its group counts."""
    policy_loss: PolicyLossKeys
    """The policy loss of verl's actor."""
    entropy_coeff: float
    """Weight of the entropy bonus on the preferred tokens; 0 switches it off."""
    loss_agg_mode: Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]
    """How a loss over tokens becomes one number: a mean over each row and then over rows, over all tokens, or a sum
    per row over ``loss_scale_factor`` and then a mean over rows."""
    loss_scale_factor: float | None = Field(gt=0)
    """What ``seq-mean-token-sum-norm`` divides by. Null: ``data.max_response_length``."""
    calculate_entropy: bool
    """Whether the entropy is computed for the metrics, though nothing is trained on it."""
    use_kl_loss: bool
    """Whether a reference policy is kept, for the KL terms of ``wavalign.kl``."""
    shuffle: bool
    """Must be false: mini-batches are dealt by prompt, before the ranks get them."""
    ppo_epochs: int = Field(ge=1)
    """How often an update goes over a batch."""
    ppo_mini_batch_size: int = Field(ge=1)
    """Prompts of one optimiser step, each with all of its rollouts and its anchor."""

    @property
    def coefficients(self) -> dict[str, Any]:
        """Arguments of :class:`wavalign_ext.method.loss.LossCoefficients`."""
        return {
            "mode": self.policy_loss.loss_mode,
            "clip_low": self.clip_ratio if self.clip_ratio_low is None else self.clip_ratio_low,
            "clip_high": self.clip_ratio if self.clip_ratio_high is None else self.clip_ratio_high,
            "clip_c": self.clip_ratio_c,
            "entropy": self.entropy_coeff,
        }


class AgentKeys(_Read):
    agent_loop_manager_class: str | None = None
    """What asks for rollouts. Null: verl's."""


class RolloutKeys(_Read):
    n: int = Field(ge=1)
    """Rollouts of a prompt; an advantage compares them."""
    temperature: float = Field(gt=0)
    """Of the sampled answers; log-probs are taken at it too."""
    calculate_log_probs: bool
    """Whether the rollout engine's log-probs come along, for the metrics that compare it with the trainer."""
    agent: AgentKeys
    """verl's agent loops, which ask for rollouts."""


class ActorRolloutKeys(_Read):
    actor: ActorKeys
    """The policy that is trained."""
    rollout: RolloutKeys
    """How answers are sampled."""


class RolloutCorrectionKeys(_Read):
    bypass_mode: bool
    """Whether the rollout engine's log-probs stand in for the old policy's."""
    rollout_is: str | None
    """Must be null: importance weights for rollouts are not applied."""
    rollout_rs: str | None
    """How tokens or answers on which engine and trainer disagree are left out. Null: none is."""
    rollout_rs_threshold: float | str | None
    """From which disagreement on ``rollout_rs`` acts."""


class FilterGroupsKeys(_Read):
    enable: bool
    """Whether a prompt whose scored rollouts are all equal is replaced by another one (DAPO, arXiv 2503.14476)."""
    metric: str | None
    """By which number they are compared."""


class AlgorithmKeys(_Read):
    adv_estimator: str
    """Must be wavalign."""
    norm_adv_by_std_in_grpo: bool
    """Whether ``grpo`` divides by the standard deviation of the prompt's rewards (false: Dr. GRPO)."""
    use_kl_in_reward: bool
    """Must be false: ``wavalign.kl`` is the penalty."""
    filter_groups: FilterGroupsKeys | None = None
    """Dynamic sampling."""
    rollout_correction: RolloutCorrectionKeys
    """What is done about an engine that samples from another distribution than the trainer computes."""


class DataKeys(_Read):
    train_batch_size: int = Field(ge=1)
    """Prompts of a step."""
    max_prompt_length: int = Field(ge=1)
    """The most tokens of a prompt."""
    max_response_length: int = Field(ge=1)
    """The most tokens of an answer; a longer one is cut off."""


class TrainerModeKeys(_Read):
    trainer_mode: str
    """wavalign, or wavalign_offline for pairs of the data."""


class TrainerKeys(_Read):
    device: str
    """What the training computes on; the hardware preset sets it."""
    use_v1: bool
    """Must be true: the trainer is one of verl's V1 trainers."""
    v1: TrainerModeKeys
    """verl's V1 trainers."""
    critic_warmup: int = Field(ge=0)
    """Must be 0: there is no critic."""
    val_only: bool
    """Whether the run ends after its first validation."""
    val_before_train: bool
    """Whether a run begins with a validation."""
    total_training_steps: int | None = Field(ge=1)
    """How many steps a run has. Null: as many as ``trainer.total_epochs`` makes."""


class RewardManagerKeys(_Read):
    source: str
    """Must be importlib: the reward manager is a class of this package, or derived from it."""


class RewardKeys(_Read):
    reward_manager: RewardManagerKeys
    """Who scores the rollouts."""


class VerlKeys(_Read):
    """Everything of verl's configuration that our code reads, typed."""

    data: DataKeys  # before the actor, whose sizes follow it
    """The prompts."""
    actor_rollout_ref: ActorRolloutKeys
    """The policy and its copies."""
    algorithm: AlgorithmKeys
    """From rewards to advantages."""
    trainer: TrainerKeys
    """The run."""
    reward: RewardKeys
    """The reward."""

    @property
    def offline(self) -> bool:
        """Whether the run trains on pairs of the data, without rollouts."""
        return self.trainer.v1.trainer_mode == OFFLINE

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """Raises :class:`ConfigError` for a value of the wrong type or out of bounds."""
        node: dict[str, Any] = {name: _value(config, name) for name in ("algorithm", "data", "trainer", "reward")}
        parts = {part: _value(config, f"actor_rollout_ref.{part}") for part in ("actor", "rollout")}
        return build(cls, node | {"actor_rollout_ref": parts})
