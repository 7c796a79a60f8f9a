"""λ, the weight of the preference loss: one number per optimiser step for the whole job, from all its rollouts."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wavalign_ext.config import MixingConfig


@dataclass(frozen=True)
class Mixing:
    """λ of one step and what it was made of; each part is a mean over the step's prompts.

    ``reward_gate`` is sigmoid(k (max r − τ)) and ``information_gate`` clip(Var r / v0, 0, 1).
    """

    value: float
    raw: float
    reward_gate: float
    information_gate: float
    best_reward: float
    variance: float
    scored: int
    missing: int
    by_prompt: Mapping[Hashable, float] = field(default_factory=dict)
    """λ of each prompt's own rows, where ``mixing.scope`` is ``prompt``; their mean is ``value``."""

    def as_metrics(self) -> dict[str, float]:
        """The parts by metric name; what no scored group defines is left out."""
        parts = {
            "wavalign/lambda": self.value,
            "wavalign/lambda_raw": self.raw,
            "wavalign/reward_gate": self.reward_gate,
            "wavalign/information_gate": self.information_gate,
            "wavalign/group_best_reward": self.best_reward,
            "wavalign/group_reward_variance": self.variance,
            "wavalign/rewards_missing": float(self.missing),
            "wavalign/nothing_scored": float(self.scored == 0),
        }
        return {name: value for name, value in parts.items() if not math.isnan(value)}


class MixingController:
    """Finds λ from a step's rewards (docs/method.md, "Mixing weight"; paper: arXiv 2604.14932).

        λ_raw,i = λ_max · sigmoid(k (max_g r_ig − τ)) · clip(Var_g(r_ig) / v0, 0, 1)
        λ_s     = (1 − α) · mean_i λ_raw,i + α · λ_{s−1},        first step: mean_i λ_raw,i
        λ_i     = (1 − α) · λ_raw,i + α · λ_{s−1}                with ``scope: prompt``, for the rows of prompt i

    Var is the population variance. Without arguments it has the paper's defaults on a 1-5 scale: λ_max 0.8, k 5, τ 3,
    v0 4, α 0.9. On another scale τ is its middle, v0 its largest variance and k 20 over its width, unless given.

    A missing reward (NaN) leaves its group; a group with fewer than two scored rollouts has λ_raw = 0. A step with
    nothing scored has λ = 0, so that it trains on the anchor alone, and leaves the moving average as it was.
    """

    def __init__(self, config: MixingConfig | None = None, scale: tuple[float, float] = (1.0, 5.0)) -> None:
        self.config = config or MixingConfig()
        low, high = scale
        if not low < high:
            raise ValueError(f"reward scale {scale} is not allowed: give (low, high) with low < high")
        given = self.config
        self.reward_threshold = (low + high) / 2 if given.reward_threshold is None else given.reward_threshold
        self.reward_sharpness = 20 / (high - low) if given.reward_sharpness is None else given.reward_sharpness
        self.variance_scale = ((high - low) / 2) ** 2 if given.variance_scale is None else given.variance_scale
        self.average: float | None = None
        self.last: Mixing | None = None

    def update(self, rewards: Sequence[float], groups: Sequence[Hashable]) -> float:
        """λ of this step.

        Args:
            rewards: one reward per rollout, shape (N,); NaN where scoring failed.
            groups: the prompt of each rollout, shape (N,).

        Raises:
            ValueError: when the two differ in length.
        """
        by_group: dict[Hashable, list[float]] = {}
        for reward, group in zip(rewards, groups, strict=True):
            by_group.setdefault(group, []).append(float(reward))
        parts = np.array([self._gates(np.asarray(values)) for values in by_group.values()]).reshape(-1, 5)
        scored = int(np.sum(~np.isnan(np.asarray(rewards, dtype=float))))
        raw = float(parts[:, 0].mean()) if len(parts) else 0.0
        before = self.average
        value = self._value(raw, scored)
        by_prompt = self._by_prompt(dict(zip(by_group, parts[:, 0], strict=True)), before, scored)
        means = [_mean_of_known(parts[:, column]) for column in range(1, 5)]
        self.last = Mixing(value, raw, *means, scored=scored, missing=len(rewards) - scored, by_prompt=by_prompt)
        return value

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue with the same λ."""
        return {"average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.average = state["average"]

    def _value(self, raw: float, scored: int) -> float:
        if self.config.type == "fixed":
            assert self.config.value is not None
            return float(self.config.value)
        if scored == 0:
            return 0.0
        kept = self.config.ema_decay
        self.average = raw if self.average is None else (1 - kept) * raw + kept * self.average
        return self.average

    def _by_prompt(self, raw: Mapping[Hashable, float], before: float | None, scored: int) -> dict[Hashable, float]:
        """The moving average of :meth:`_value`, with each prompt's own gate in place of the mean over prompts."""
        if self.config.scope == "step":
            return {}
        if scored == 0:
            return dict.fromkeys(raw, 0.0)
        kept = 0.0 if before is None else self.config.ema_decay
        return {prompt: float((1 - kept) * gate + kept * (before or 0.0)) for prompt, gate in raw.items()}

    def _gates(self, rewards_G: np.ndarray) -> tuple[float, float, float, float, float]:
        """(λ_raw, reward gate, information gate, best reward, variance) of one prompt."""
        known = rewards_G[~np.isnan(rewards_G)]
        if len(known) < 2:
            return 0.0, math.nan, math.nan, math.nan, math.nan
        best, variance = float(known.max()), float(known.var())
        reward_gate = _sigmoid(self.reward_sharpness * (best - self.reward_threshold))
        information_gate = min(max(variance / self.variance_scale, 0.0), 1.0)
        return self.config.lambda_max * reward_gate * information_gate, reward_gate, information_gate, best, variance


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def row_shares(by_prompt_R: Sequence[float], lam: float) -> tuple[list[float], list[float]]:
    """Factors of each row's preference and anchor weights that turn a step's λ into that of its prompt.

    The loss is λ · preference + (1 − λ) · anchor over all rows; with the factors λ_i / λ and (1 − λ_i) / (1 − λ) each
    prompt's rows get λ_i and 1 − λ_i. At λ = 0 and λ = 1 all prompts agree, being within [0, 1], and nothing is scaled.

    Args:
        by_prompt_R: λ of the prompt that each row belongs to, shape (R,).
        lam: their mean over the step's prompts.
    """
    preference = [share / lam if lam > 0 else 1.0 for share in by_prompt_R]
    return preference, [(1 - share) / (1 - lam) if lam < 1 else 1.0 for share in by_prompt_R]
