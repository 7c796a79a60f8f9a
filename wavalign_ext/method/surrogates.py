"""The objectives that the policy gradient can climb, by verl's names for them (``policy_loss.loss_mode``).

Each takes the log-ratios ``log ρ_t`` of new to old policy (0 where a token has no weight), advantages A and weights w,
all of shape (R, T), and returns the objective per token and masks for the metrics; the loss is −Σ w · objective. A mean
over a row is weighted by w, so that it leaves out what the preference leaves out. On-policy, where ρ is 1, the three
have the same value and the same gradient.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from wavalign_ext.method.loss import LossCoefficients

Surrogate = tuple[Tensor, dict[str, Tensor]]


def vanilla(log_ratio: Tensor, advantage: Tensor, weight: Tensor, c: "LossCoefficients") -> Surrogate:
    """PPO: min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A), but no less than c A for A < 0 (dual clip, arXiv 1912.09729)."""
    ratio = log_ratio.exp()
    clipped = torch.clamp(ratio, 1 - c.clip_low, 1 + c.clip_high)
    single = torch.minimum(ratio * advantage, clipped * advantage)
    dual = torch.where(advantage < 0, torch.maximum(single, c.clip_c * advantage), single)
    return dual, {"pg_clipfrac": clipped * advantage < ratio * advantage, "pg_clipfrac_lower": dual > single}


def gspo(log_ratio: Tensor, advantage: Tensor, weight: Tensor, c: "LossCoefficients") -> Surrogate:
    """PPO without dual clip, with one ratio per row: s = exp(mean of log ρ_t) (GSPO, arXiv 2507.18071).

    Written per token, so that each token can have an advantage of its own: it has the value of s, and its own gradient.
    """
    ratio = (_row_mean(log_ratio, weight).detach() + log_ratio - log_ratio.detach()).exp()
    clipped = torch.clamp(ratio, 1 - c.clip_low, 1 + c.clip_high)
    objective = torch.minimum(ratio * advantage, clipped * advantage)
    return objective, {"pg_clipfrac": clipped * advantage < ratio * advantage}


def geo_mean(log_ratio: Tensor, advantage: Tensor, weight: Tensor, c: "LossCoefficients") -> Surrogate:
    """A · exp(mean of log ρ_t), each log ρ_t bounded to [−ε_low, ε_high] where that is worse (GMPO, arXiv 2507.20673).

    A row has one advantage.
    """
    sign = advantage.sign()
    bounded = sign * torch.minimum(sign * log_ratio, sign * torch.clamp(log_ratio, -c.clip_low, c.clip_high))
    ratio = _row_mean(bounded, weight).exp()
    return ratio * advantage, {"pg_clipfrac": (bounded != log_ratio) & (advantage != 0)}


SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, "LossCoefficients"], Surrogate]] = {
    "vanilla": vanilla,
    "gspo": gspo,
    "geo_mean": geo_mean,
}


def _row_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over a row's tokens, (R, 1); 0 for a row without weight."""
    total = weight.sum(-1, keepdim=True)
    return (weight * values).sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)
