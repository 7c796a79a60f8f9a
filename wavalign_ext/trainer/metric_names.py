"""Every metric that WavAlign logs, with its meaning: what ``docs/metrics.md`` is made of (``make pages``).

Names in capitals stand for names of the recipe's own. ``tests/unit/trainer/test_metric_names.py`` calls what logs, and
compares.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """``names`` share a meaning; ``unit``: what the number counts or lies in; ``source``: what makes it."""

    names: tuple[str, ...]
    unit: str
    meaning: str
    source: str


@dataclass(frozen=True)
class Group:
    """Metrics that are read together."""

    title: str
    about: str
    metrics: tuple[Metric, ...]


def _both(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.format(modality) for modality in ("text", "speech"))


_MIXING = "`Mixing.as_metrics`, method/mixing.py"
_ROLLOUTS = "`rollout_metrics`, trainer/metrics.py"
_MEANS = "`rollout_metrics`, trainer/metrics.py; or `policy_metrics`, method/policy_sums.py"
_ANSWERS = "`reward_metrics`, trainer/metrics.py"
_LOSS = "`combined_loss`, method/loss.py"
_SUMS = "`policy_metrics`, method/policy_sums.py"
_PAIRS = "`pair_metrics`, trainer/pairing.py"
_UPDATE = "`ActorUpdate.metrics`, trainer/actor_batch.py"

LAMBDA = Group(
    "λ and its gates",
    "One number for each step, from the rewards of all its rollouts; the parts are means over the step's prompts that "
    "have at least two scored rollouts.",
    (
        Metric(("wavalign/lambda",), "[0, 1]", "λ, the weight of the preference; the anchor has 1 − λ.", _MIXING),
        Metric(
            ("wavalign/lambda_raw",),
            "[0, lambda_max]",
            "λ before the moving average: lambda_max · reward gate · information gate, mean over all prompts.",
            _MIXING,
        ),
        Metric(
            ("wavalign/reward_gate",),
            "[0, 1]",
            "sigmoid(k (best reward − τ)): is any answer good enough to learn from?",
            _MIXING,
        ),
        Metric(
            ("wavalign/information_gate",),
            "[0, 1]",
            "clip(variance / v0, 0, 1): do the rewards tell a prompt's answers apart?",
            _MIXING,
        ),
        Metric(("wavalign/group_best_reward",), "reward scale", "The best reward of a prompt.", _MIXING),
        Metric(
            ("wavalign/group_reward_variance",),
            "reward scale, squared",
            "The population variance of a prompt's rewards.",
            _MIXING,
        ),
        Metric(("wavalign/rewards_missing",), "rollouts", "How many have no reward.", _MIXING),
        Metric(
            ("wavalign/nothing_scored",),
            "0 or 1",
            "1: no rollout has a reward, and the step trains on the anchor alone.",
            _MIXING,
        ),
    ),
)
ROLLOUTS = Group(
    "Rollouts, by modality",
    "What the step's answers looked like before the update.",
    (
        Metric(_both("wavalign/tokens_{}"), "tokens per answer", "Tokens of the modality, mean.", _ROLLOUTS),
        Metric(
            _both("wavalign/entropy_{}"),
            "nats per token",
            "Entropy of the policy, mean; the update computes it with `actor.calculate_entropy=true`.",
            _MEANS,
        ),
        Metric(_both("wavalign/logp_{}"), "nats per token", "Log-probability of the sampled tokens, mean.", _MEANS),
        Metric(
            _both("wavalign/kl_{}"),
            "nats per token, ≥ 0",
            "KL to the reference policy, k3 estimate, mean over tokens: the drift so far.",
            _MEANS,
        ),
        Metric(_both("wavalign/rollouts_without_{}"), "share", "Answers without a token of the modality.", _ROLLOUTS),
        Metric(("wavalign/rollouts_truncated",), "share", "Answers without an end: the length limit came.", _ROLLOUTS),
        Metric(
            ("wavalign/rollouts_missing_share",),
            "share",
            "Answers that never came, because their agent loop failed: ``wavalign.health.missing_rollouts``.",
            _ROLLOUTS,
        ),
        Metric(("wavalign/rewards_missing_share",), "share", "Answers without a reward.", _ROLLOUTS),
        Metric(
            ("wavalign/groups_degenerate",),
            "share",
            "Prompts whose scored answers all have the same reward, or none: no advantage comes of them.",
            _ROLLOUTS,
        ),
    ),
)
REWARDS = Group(
    "Rewards",
    "TERM is a name under `wavalign.reward.terms`; NOTE is what a term found out on the way, such as `wer`, "
    "`judge_retries` or `exact`.",
    (
        Metric(("reward/TERM",), "reward scale", "The term's score, mean over the answers that have one.", _ANSWERS),
        Metric(("reward_missing/TERM",), "share", "Answers that the term gave no score.", _ANSWERS),
        Metric(
            tuple(f"reward/route_{modality}" for modality in ("text", "speech")),
            "reward scale",
            "What drives the modality's tokens, where wavalign.reward.routes gives it terms of its own; mean.",
            _ANSWERS,
        ),
        Metric(("reward_notes/NOTE",), "the note's own", "Mean over the answers that have the note.", _ANSWERS),
    ),
)
LOSS = Group(
    "Loss",
    "Sums over the rows of an optimiser step, with the weights of method/token_weights.py: every mean is in them.",
    (
        Metric(("actor/total_loss",), "loss", "λ · preference + (1 − λ) · anchor: what the optimiser descends.", _LOSS),
        Metric(
            ("actor/preference_loss",),
            "loss",
            "Policy gradient with its KL terms and entropy bonus: what λ weighs.",
            _LOSS,
        ),
        Metric(("actor/pg_loss",), "loss", "The policy gradient alone.", _LOSS),
        Metric(("actor/anchor_nll",), "loss", "The anchor: −log p of the targets, weighted by its tokens.", _LOSS),
        Metric(
            _both("actor/anchor_nll_{}"),
            "nats per token",
            "−log p of the targets' tokens of the modality, whatever they weigh in the anchor.",
            _LOSS,
        ),
        Metric(
            _both("actor/kl_{}"),
            "nats per token, ≥ 0",
            "The KL term, before its coefficient; where that is above 0.",
            _LOSS,
        ),
        Metric(
            _both("actor/entropy_{}"), "nats per token", "Entropy, averaged as the loss averages; if computed.", _LOSS
        ),
        Metric(
            ("actor/pg_clipfrac",), "share", "Preferred tokens whose ratio is clipped, as much as they weigh.", _LOSS
        ),
        Metric(
            ("actor/pg_clipfrac_lower",),
            "share",
            "Preferred tokens at the bound of the dual clip, as much as they weigh.",
            _LOSS,
        ),
        Metric(("actor/ppo_kl",), "nats per token", "−log ratio of new to old policy on preferred tokens.", _LOSS),
    ),
)
PAIRS = Group(
    "Pairs of answers",
    "With `wavalign.preference.objective=dpo` or `ipo`, under the weights before the update. `actor/pg_loss` is then a "
    "surrogate that has the objective's gradient; the objective's value is `wavalign/pair_loss`.",
    (
        Metric(("wavalign/pairs",), "pairs", "Pairs of the step.", _PAIRS),
        Metric(("wavalign/pair_loss",), "loss", "The objective, mean over pairs.", _PAIRS),
        Metric(("wavalign/pair_margin",), "nats", "β times the gap between chosen and rejected, mean.", _PAIRS),
        Metric(("wavalign/pair_accuracy",), "share", "Pairs whose gap is above 0.", _PAIRS),
        Metric(
            _both("wavalign/chosen_logp_{}"), "nats per token", "Log-prob of the better answers' tokens, mean.", _PAIRS
        ),
        Metric(
            _both("wavalign/rejected_logp_{}"), "nats per token", "Log-prob of the worse answers' tokens, mean.", _PAIRS
        ),
        Metric(("wavalign/groups_tied",), "prompts", "Left out: their rollouts all have one reward.", _PAIRS),
        Metric(
            ("wavalign/groups_below_gap",), "prompts", "Left out: best and worst differ by less than min_gap.", _PAIRS
        ),
        Metric(
            ("wavalign/groups_unscored",),
            "prompts",
            "Left out: fewer than two rollouts with a reward and a token that the preference acts on.",
            _PAIRS,
        ),
    ),
)
UPDATE = Group(
    "Rows of the update",
    "How a step's rows were divided.",
    (
        Metric(("wavalign/rows_rollout",), "rows", "Rollouts.", _UPDATE),
        Metric(("wavalign/rows_anchor",), "rows", "Targets, one for each prompt.", _UPDATE),
        Metric(("wavalign/rows_padding",), "rows", "Rows that fill up the mini-batches, and count nowhere.", _UPDATE),
        Metric(("wavalign/optimiser_steps",), "steps", "Optimiser steps of the update.", _UPDATE),
    ),
)
ENGINES = Group(
    "Rollout engine against trainer",
    "verl's names; made here where the update's own log-probs are the old ones (`wavalign.update.skip_old_log_probs`), "
    "over the tokens whose log-prob the update computes.",
    (
        Metric(
            tuple(f"training/rollout_probs_diff_{kind}" for kind in ("mean", "max", "std")),
            "[0, 1]",
            "Difference of the probabilities that engine and trainer give to a sampled token.",
            _SUMS,
        ),
        Metric(("training/rollout_probs_diff_valid",), "1", "There are tokens to compare.", _SUMS),
        Metric(
            ("training/rollout_actor_probs_pearson_corr",),
            "[−1, 1]",
            "Correlation of these probabilities; near 1 where the two agree.",
            _SUMS,
        ),
    ),
)
VALIDATION = Group(
    "Validation",
    "On the targets of `data.val_files`, teacher-forced, at temperature 1. How the sampled validation answers do is in "
    "verl's `val-core/` and `val-aux/`.",
    (
        Metric(
            _both("val-anchor/nll_{}"),
            "nats per token",
            "−log p of the held-out targets, mean over tokens of the modality.",
            "`held_out_nll`, trainer/validation_nll.py",
        ),
        Metric(
            ("val-pairs/loss", "val-pairs/margin", "val-pairs/accuracy"),
            "loss; nats; share",
            "The objective on the held-out pairs, its margin β · gap, and the share of pairs with a gap above 0; in "
            "runs on pairs of the data.",
            "`OfflineTrainer._held_out_pairs`, trainer/offline.py",
        ),
    ),
)
GROUPS = (LAMBDA, ROLLOUTS, REWARDS, LOSS, PAIRS, UPDATE, ENGINES, VALIDATION)
THEIRS = Group(
    "verl's, read beside them",
    "verl logs many more under `actor/`, `critic/`, `perf/`, `response_length/`, `timing_s/`, `training/`, `val-core/` "
    "and `val-aux/`; `wavalign report` draws these.",
    (
        Metric(("actor/grad_norm",), "norm", "Of the gradient, before clipping.", "verl"),
        Metric(("response_length/max",), "tokens", "The longest answer.", "verl"),
        Metric(("perf/time_per_step", "timing_s/step"), "s", "Seconds of a step.", "verl"),
        Metric(
            ("val-aux/SOURCE/NOTE/mean@N",),
            "the note's own",
            "A note or score of the sampled validation answers, N for each prompt.",
            "verl",
        ),
    ),
)
PAGE = """# Metrics

<!-- made by `make pages`: change wavalign_ext/trainer/metric_names.py instead -->

What WavAlign adds to a run's log, by name; TensorBoard, the console and `wavalign report` have the same names. A number
that a step does not define is left out of it: no entropy is logged where none is computed.
"""


def find(name: str) -> Metric | None:
    """The entry of a logged name; None where there is none. A name of its own goes before one with a stand-in."""
    every = [(listed, metric) for group in (*GROUPS, THEIRS) for metric in group.metrics for listed in metric.names]
    for listed, metric in sorted(every, key=lambda pair: pair[0] != name):
        if re.fullmatch(re.sub(r"[A-Z]+", ".+", listed), name):
            return metric
    return None


def markdown() -> str:
    """``docs/metrics.md``."""
    lines = [PAGE]
    for group in (*GROUPS, THEIRS):
        lines += [
            f"## {group.title}",
            "",
            group.about,
            "",
            "| Name | Unit or range | Meaning | From |",
            "|---|---|---|---|",
        ]
        for metric in group.metrics:
            names = ", ".join(f"`{name}`" for name in metric.names)
            lines.append(f"| {names} | {metric.unit} | {metric.meaning} | {metric.source} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
