"""The active positions, gathered: what a row step reads and writes. A = number of active positions."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .records import ANCHOR, LOG_RATIO_LIMIT, PREFERENCE, LossInputs, LossParts


def _part(record, a: int, b: int):
    """The same record over rows a to b."""
    cut = {f.name: getattr(record, f.name)[a:b] for f in fields(record) if isinstance(getattr(record, f.name), Tensor)}
    return replace(record, **cut)


@dataclass(frozen=True)
class Rows:
    """The rows of the softmax."""

    index: Tensor  # (A,) position in the stream
    targets: Tensor  # (A,)
    inv_temperature: Tensor | None  # (A,) None: 1

    part = _part


@dataclass(frozen=True)
class RowStats:
    """What the softmax of each row leaves behind."""

    logp: Tensor  # (A,) log p_y
    one_minus_p: Tensor  # (A,) 1 − p_y, summed from the other entries: exact where p_y is near 1
    lse: Tensor  # (A,) log Σ exp z
    entropy: Tensor  # (A,)

    part = _part

    @staticmethod
    def empty(rows: int, like: Tensor) -> "RowStats":
        return RowStats(*(like.new_empty(rows) for _ in range(4)))


@dataclass(frozen=True)
class RowGrads:
    """The gradient that arrives at each row's outputs."""

    logp: Tensor  # (A,) ∂L/∂logp
    entropy: Tensor | None  # (A,) ∂L/∂H

    part = _part


@dataclass(frozen=True)
class LossRows:
    """The columns of `LossInputs` at the active positions; `scale` is λ/D or (1−λ)/D by the row's kind."""

    preference: Tensor  # (A,) bool
    scale: Tensor  # (A,)
    weights: Tensor  # (A,)
    advantages: Tensor | None  # (A,)
    old_logp: Tensor | None  # (A,)
    ref_logp: Tensor | None  # (A,)
    kl_weights: Tensor | None  # (A,)
    entropy_weights: Tensor | None  # (A,) c·e, None: no entropy term
    clip_low: float
    clip_high: float
    clip_c: float

    part = _part


def gather_rows(index: Tensor, targets: Tensor, temperature: float | Tensor, dtype: torch.dtype) -> Rows:
    """Compact the columns that the softmax needs."""
    inverse = None
    if isinstance(temperature, Tensor):
        # A scalar on the CPU goes along with the kernel; a copy of it could not be captured in a CUDA graph.
        column = temperature.detach()[index].to(dtype) if temperature.dim() else temperature.detach()
        inverse = torch.ones(len(index), dtype=dtype, device=index.device) / column
    elif temperature != 1.0:
        inverse = torch.full((len(index),), 1.0 / temperature, dtype=dtype, device=index.device)
    return Rows(index, targets[index].long(), inverse)


def gather_loss(x: LossInputs, index: Tensor, dtype: torch.dtype) -> LossRows:
    """Compact the columns that the loss needs."""

    def pick(column: Tensor | None) -> Tensor | None:
        return None if column is None else column.detach()[index].to(dtype)

    preference = x.kind[index] == PREFERENCE
    lam = 1.0 if x.lam is None else x.lam
    rest = 1.0 if x.lam is None else 1.0 - x.lam
    ones = torch.ones(len(index), dtype=dtype, device=index.device)
    scale = torch.where(preference, ones * (lam / x.preference_denominator), ones * (rest / x.anchor_denominator))
    weights = pick(x.weights)
    assert weights is not None
    share = None
    if x.entropy_coef != 0:
        own = pick(x.entropy_weights)
        share = torch.where(preference, x.entropy_coef * (weights if own is None else own), 0.0)
    return LossRows(
        preference=preference,
        scale=scale.to(dtype),
        weights=weights,
        advantages=pick(x.advantages),
        old_logp=pick(x.old_logp),
        ref_logp=pick(x.ref_logp),
        kl_weights=pick(x.kl_weights),
        entropy_weights=None if share is None else share.to(dtype),
        clip_low=x.clip_low,
        clip_high=x.clip_high,
        clip_c=x.clip_c,
    )


def loss_slopes(logp: Tensor, r: LossRows) -> RowGrads:
    """∂L/∂logp and ∂L/∂H of every row.

    preference: −w·A·ρ where the unclipped branch is the smaller one, + κ·(1 − exp(ref − logp));  anchor: −w
    A log-ratio or a gap at its limit has no slope.
    """
    slope = -r.weights
    if r.advantages is not None:
        gap = logp - (logp if r.old_logp is None else r.old_logp)
        ratio = _limited(gap, r.weights).exp()
        negative = (ratio >= 1 - r.clip_low) & (ratio <= r.clip_c)
        unclipped = torch.where(r.advantages > 0, ratio <= 1 + r.clip_high, negative)
        unclipped &= gap.abs() <= LOG_RATIO_LIMIT
        policy = torch.where(unclipped, slope * r.advantages * ratio, 0.0)
        if r.ref_logp is not None and r.kl_weights is not None:
            gap = r.ref_logp - logp
            rise = -r.kl_weights * torch.expm1(_limited(gap, r.kl_weights))
            policy = policy + torch.where(gap.abs() <= LOG_RATIO_LIMIT, rise, 0.0)
        slope = torch.where(r.preference, policy, slope)
    return RowGrads(slope * r.scale, None if r.entropy_weights is None else -r.entropy_weights * r.scale)


def loss_parts(stats: RowStats, r: LossRows, x: LossInputs) -> tuple[Tensor, LossParts]:
    """The loss and its terms from the rows' statistics: O(A) work."""
    logp, zero = stats.logp, torch.zeros_like(stats.logp)
    surrogate = kl = bonus = zero
    if r.advantages is not None:
        ratio = _limited(logp - (logp if r.old_logp is None else r.old_logp), r.weights).exp()
        clipped = ratio.clamp(1 - r.clip_low, 1 + r.clip_high)
        surrogate = torch.minimum(ratio * r.advantages, clipped * r.advantages)
        surrogate = torch.where(r.advantages < 0, torch.maximum(surrogate, r.clip_c * r.advantages), surrogate)
        surrogate = -r.weights * surrogate
    if r.ref_logp is not None and r.kl_weights is not None:
        gap = _limited(r.ref_logp - logp, r.kl_weights)
        kl = r.kl_weights * (torch.expm1(gap) - gap)
    if r.entropy_weights is not None:
        bonus = -r.entropy_weights * stats.entropy
    sums = [torch.where(r.preference, t, zero).sum() / x.preference_denominator for t in (surrogate, kl, bonus)]
    preference = sums[0] + sums[1] + sums[2]
    anchor = torch.where(r.preference, zero, -r.weights * logp).sum() / x.anchor_denominator
    loss = preference + anchor if x.lam is None else x.lam * preference + (1 - x.lam) * anchor
    return loss, LossParts(preference, anchor, *sums)


def _limited(gap: Tensor, weight: Tensor) -> Tensor:
    """Within the limit, and 0 where the weight is: what was subtracted there may mean nothing."""
    return torch.where(weight > 0, gap, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def scatter(column: Tensor, index: Tensor, length: int) -> Tensor:
    """Back to the stream, zero elsewhere.  # (A,) -> (T,)"""
    return column.new_zeros(length).index_copy_(0, index, column)


def active_index(kind_or_mask: Tensor) -> Tensor:
    """Positions that take part."""
    mask = kind_or_mask if kind_or_mask.dtype == torch.bool else (kind_or_mask == PREFERENCE) | (kind_or_mask == ANCHOR)
    return mask.nonzero()[:, 0]


def mask_of(index: Tensor, length: int) -> Tensor:
    """The opposite of `active_index`; an entry outside the stream is for a check to find.  # (A,) -> (T,)"""
    mask = torch.zeros(length, dtype=torch.bool, device=index.device)
    return mask.index_fill_(0, index.clamp(0, length - 1), True) if length else mask
