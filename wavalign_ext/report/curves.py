"""Which curves the page draws, in which groups, from which tags, and the numbers of its tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from wavalign_ext.report.reading import Run, setting


@dataclass(frozen=True)
class Line:
    """``tags``: patterns; the first that a run has is drawn."""

    label: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """``floor`` and ``ceiling``: the y axis reaches at least so far."""

    title: str
    lines: tuple[Line, ...]
    note: str = ""
    floor: float | None = None
    ceiling: float | None = None


def _one(title: str, *tags: str, note: str = "", floor: float | None = None, ceiling: float | None = None) -> Chart:
    return Chart(title, (Line(title, tags),), note, floor, ceiling)


def _pair(title: str, text: str, speech: str, note: str = "") -> Chart:
    return Chart(title, (Line("text", (text,)), Line("speech", (speech,))), note, floor=0)


MIXING = (
    Chart(
        "λ, weight of the preference",
        (Line("λ", ("wavalign/lambda",)), Line("raw", ("wavalign/lambda_raw",))),
        "λ is the moving average of raw; the anchor has the weight 1 − λ.",
        floor=0,
    ),
    _one("Reward gate", "wavalign/reward_gate", note="sigmoid(k (best − τ)): is an answer good?", floor=0, ceiling=1),
    _one(
        "Information gate",
        "wavalign/information_gate",
        note="clip(variance / v0, 0, 1): do rewards tell answers apart?",
        floor=0,
    ),
    _one("Best reward of a group", "wavalign/group_best_reward", note="Mean over the step's questions."),
    _one("Variance within a group", "wavalign/group_reward_variance", note="Mean over the step's questions.", floor=0),
)
DRIFT = (
    _pair("KL to the reference", "wavalign/kl_text", "wavalign/kl_speech", "k3 estimate, mean over tokens."),
    _pair("Entropy", "wavalign/entropy_text", "wavalign/entropy_speech", "Nats per token."),
    Chart(
        "Log-probability",
        (Line("text", ("wavalign/logp_text",)), Line("speech", ("wavalign/logp_speech",))),
        "Of sampled tokens, mean.",
    ),
)
LENGTHS = (
    _one("Text tokens per answer", "wavalign/tokens_text", floor=0),
    _one("Speech tokens per answer", "wavalign/tokens_speech", floor=0),
    _one("Longest answer, tokens", "response_length/max", floor=0),
)
FAILURES = (
    _one(
        "Answers without a reward",
        "wavalign/rewards_missing_share",
        "rollouts/missing",
        note="Share: a term that counts gave no score.",
        floor=0,
        ceiling=0.05,
    ),
    Chart(
        "Judge",
        (
            Line("retries", ("reward_notes/judge_retries",)),
            Line("failures", ("reward_notes/judge_failures",)),
            Line("from the cache", ("reward_notes/judge_cache_hits",)),
        ),
        "Per answer, mean.",
        floor=0,
    ),
    _one("Truncated answers", "wavalign/rollouts_truncated", note="Share.", floor=0, ceiling=0.05),
    Chart(
        "Answers without a modality",
        (
            Line("no text", ("wavalign/rollouts_without_text",)),
            Line("no speech", ("wavalign/rollouts_without_speech",)),
        ),
        "Share.",
        floor=0,
        ceiling=0.05,
    ),
    _one("Degenerate groups", "wavalign/groups_degenerate", note="Share with equal rewards.", floor=0, ceiling=0.05),
    _one("Steps with nothing scored", "wavalign/nothing_scored", note="1: the anchor alone.", floor=0, ceiling=1),
)
TRAINING = (
    _pair("Anchor NLL on training targets", "actor/anchor_nll_text", "actor/anchor_nll_speech", "Nats per token."),
    _one("Preference loss", "actor/preference_loss"),
    _one("Gradient norm", "actor/grad_norm", floor=0),
    _one("Seconds per step", "perf/time_per_step", "timing_s/step", floor=0),
)
HELD_OUT_NLL = _pair(
    "Held-out anchor NLL", "val-anchor/nll_text", "val-anchor/nll_speech", "Nats per target token, teacher-forced."
)
HELD_OUT_WER = _one(
    "Held-out spoken WER", "validation/wer", "val-aux/*/wer/mean@*", note="By the reward's recogniser.", floor=0
)


def groups(runs: Sequence[Run]) -> list[tuple[str, list[Chart]]]:
    """(heading, charts); reward terms are those of the runs."""
    scales = [scale for scale in (setting(run, "wavalign.reward.scale") for run in runs) if scale]
    low = min((scale[0] for scale in scales), default=None)
    high = max((scale[1] for scale in scales), default=None)
    terms = list(dict.fromkeys(term for run in runs for term in run.terms))
    rewards = [_one("Reward", "rollouts/score", "critic/score/mean", note="Rollouts, mean.", floor=low, ceiling=high)]
    held_out = [_one("Held-out reward", "validation/score", "val-core/*/reward/mean@*", floor=low, ceiling=high)]
    for term in terms:
        column = f"score_{term}"
        rewards.append(_one(term, f"rollouts/{column}", note="Rollouts, mean.", floor=low, ceiling=high))
        tags = (f"validation/{column}", f"val-aux/*/{column}/mean@*")
        held_out.append(_one(f"Held-out {term}", *tags, floor=low, ceiling=high))
    rewards.append(_one("Spoken WER", "rollouts/wer", note="Rollouts, by the reward's recogniser.", floor=0))
    rewards.append(_one("Text exactly right", "rollouts/exact", note="Share of rollouts.", floor=0, ceiling=1))
    held_out.append(_one("Held-out text exactly right", "validation/exact", floor=0, ceiling=1))
    return [
        ("Mixing", list(MIXING)),
        ("Rewards", rewards),
        ("Held out", [HELD_OUT_NLL, HELD_OUT_WER, *held_out]),
        ("KL and entropy", list(DRIFT)),
        ("Lengths", list(LENGTHS)),
        ("Failures", list(FAILURES)),
        ("Training", list(TRAINING)),
    ]


def points(run: Run, line: Line) -> dict[int, float]:
    """Step → value, in order of steps; empty when the run has none of the tags."""
    for pattern in line.tags:
        for tag, values in run.scalars.items():
            if fnmatch(tag, pattern) and any(not math.isnan(value) for value in values.values()):
                return dict(sorted(values.items()))
    return {}


def chart_data(chart: Chart, runs: Sequence[Run]) -> dict[str, Any] | None:
    """The chart as the page's script takes it; None when no run has a number for it."""
    series = []
    for number, run in enumerate(runs):
        for place, line in enumerate(chart.lines):
            values = points(run, line)
            if values:
                ys = [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.values()]
                series.append({"run": number, "line": place, "x": list(values), "y": ys})
    if not series:
        return None
    labels = [line.label for line in chart.lines]
    bounds = {"floor": chart.floor, "ceiling": chart.ceiling}
    return {"title": chart.title, "note": chart.note, "lines": labels, "series": series, **bounds}


SUMMARY = (
    ("Reward of rollouts", Line("", ("rollouts/score", "critic/score/mean"))),
    ("Held-out reward", Line("", ("validation/score", "val-core/*/reward/mean@*"))),
    ("Held-out text exactly right", Line("", ("validation/exact", "val-aux/*/exact/mean@*"))),
    ("Held-out spoken WER", Line("", HELD_OUT_WER.lines[0].tags)),
    ("Held-out anchor NLL, text", Line("", ("val-anchor/nll_text",))),
    ("Held-out anchor NLL, speech", Line("", ("val-anchor/nll_speech",))),
    ("λ", Line("", ("wavalign/lambda",))),
    ("KL, text", Line("", ("wavalign/kl_text",))),
    ("KL, speech", Line("", ("wavalign/kl_speech",))),
)


def summary(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(quantity, one cell per run): the first and the last value."""
    steps = [max((step for values in run.scalars.values() for step in values), default=None) for run in runs]
    rows = [("Last step", ["–" if step is None else str(step) for step in steps])]
    return rows + [(title, [_first_and_last(points(run, line)) for run in runs]) for title, line in SUMMARY]


def _first_and_last(values: dict[int, float]) -> str:
    known = [value for value in values.values() if math.isfinite(value)]
    if not known:
        return "–"
    first, last = (f"{value:.3g}" for value in (known[0], known[-1]))
    return last if len(known) == 1 else f"{first} → {last}"


SETTINGS = (
    ("Preference on", "wavalign.preference.tokens"),
    ("Anchor on", "wavalign.anchor.tokens"),
    ("Mixing", "wavalign.mixing"),
    ("KL coefficient", "wavalign.kl"),
    ("Reward terms", "wavalign.reward.terms"),
    ("Reward scale", "wavalign.reward.scale"),
    ("Questions per step", "data.train_batch_size"),
    ("Answers per question", "actor_rollout_ref.rollout.n"),
    ("Temperature", "actor_rollout_ref.rollout.temperature"),
    ("Learning rate", "actor_rollout_ref.actor.optim.lr"),
    ("Seed", "data.seed"),
    ("Steps asked for", "trainer.total_training_steps"),
)


def settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(what, one cell per run); what no run tells is left out."""
    rows = [(title, [_shown(key, setting(run, key)) for run in runs]) for title, key in SETTINGS]
    return [(title, cells) for title, cells in rows if any(cell != "–" for cell in cells)]


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if key.endswith(".terms"):
        return ", ".join(f"{name} × {(term or {}).get('weight', 1)}" for name, term in value.items())
    if key.endswith(".mixing"):
        if value.get("type") == "fixed":
            return f"fixed, λ = {value.get('value')}"
        return f"{value.get('type')}, λ at most {value.get('lambda_max')}, ema_decay {value.get('ema_decay')}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
