"""The row step in PyTorch, for CPUs and as a fallback: one pass over logits for their statistics, one for the gradient.

Rows are taken in blocks; a block and a scratch copy of it fit the second-level cache. Where `avx512` makes the passes,
all rows are one block. What has one number per row is computed for all rows at once between the passes: a call on a few
numbers costs as much as a pass over thousands, and a loss needs dozens of calls.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import avx512
from .rows import LossRows, RowGrads, Rows, RowStats, loss_slopes

BLOCK_BYTES = {"cpu": 1 << 19, "cuda": 1 << 28}
LEAST = -1e30
"""Stands for −∞ where an exponential of 0 is multiplied by its logit: 0 · −∞ is NaN."""


def step(
    z: Tensor,  # (C, V) logits, overwritten
    d: Tensor | None,  # (C, V) receives dlogits but for the factor, may be z; None: statistics alone
    rows: Rows,
    bias: Tensor | None,  # (V,)
    stats: RowStats,  # written, or read where slopes are given
    *,
    slopes: RowGrads | None = None,
    loss: LossRows | None = None,
    entropy: bool = True,
) -> Tensor | None:
    """Statistics, statistics and dlogits of `loss`, or dlogits of `slopes` (statistics known).

    Returns the factor that each row of d still lacks  # (C, 1), None: 1. Where the entropy has no slope, dlogits are
    −a/τ · (p − δ_y): d then holds p up to a factor, and whoever multiplies d by (V, H) scales (C, H) instead of (C, V).
    """
    count = len(z)
    softmax, gradient, height = _passes(z)
    blocks = [slice(a, min(a + height, count)) for a in range(0, count, height)]
    y = rows.targets[:, None]
    inverse = None if rows.inv_temperature is None else rows.inv_temperature[:, None]
    # An entropy term needs log p in the second pass; without one the first pass leaves exponentials.
    one_pass = loss is not None and loss.entropy_weights is None
    sums = []
    for at in blocks:
        x = z[at]
        if bias is not None:
            x.add_(bias)
        if inverse is not None:
            x.mul_(inverse[at])
        if slopes is None:
            sums.append(softmax(x, y[at], entropy or loss is not None, one_pass))
    offset, others, total = stats.lse[:, None], stats.one_minus_p[:, None], 1.0
    if slopes is None:
        top, x_y, others, *energy = (torch.cat(column) for column in zip(*sums, strict=True))
        total = record(stats, top, x_y, others, *energy)
        offset = total.log()  # z holds z − m by now
        slopes = None if loss is None else loss_slopes(stats.logp, loss)
    if d is None or slopes is None:
        return None
    a = slopes.logp[:, None] if inverse is None else slopes.logp[:, None] * inverse
    b = slopes.entropy
    if b is not None:
        b = b[:, None] if inverse is None else b[:, None] * inverse
    if not one_pass:
        for at in blocks:
            gradient(z[at], offset[at], stats.entropy[at, None], a[at], None if b is None else b[at])
    if d is not z:
        d.copy_(z)
    # Not scatter_, which copies all of a bf16 matrix.
    own = -others[:, 0] if b is None else at_target(stats, slopes, rows.inv_temperature)
    d[torch.arange(count, device=d.device), rows.targets] = own.to(d.dtype)
    return -a / total if b is None else None


def _passes(z: Tensor) -> tuple[Callable, Callable, int]:
    """The two passes over z, and how many of its rows are a block to them."""
    if avx512.takes(z):
        return avx512.softmax, avx512.gradient, max(1, len(z))
    height = max(1, min(len(z), BLOCK_BYTES[z.device.type] // (z.shape[1] * z.element_size())))
    scratch = torch.empty(height, z.shape[1], dtype=z.dtype, device=z.device)
    return partial(_softmax, scratch), partial(_gradient, scratch), height


def _softmax(scratch: Tensor, x: Tensor, y: Tensor, entropy: bool, keep_exp: bool) -> tuple[Tensor, ...]:
    """m, x_y − m, Σ_{j≠y} e_j and Σ_{j≠y} e_j (x_j − m), (R, 1) each; x becomes x − m, or e with 0 at the target.

    With m = max x, e_j = exp(x_j − m), S = Σ e:  logp = x_y − m − log S,  H = log S − Σ e_j (x_j − m) / S.
    The target is left out of the sums and added at the end, which makes 1 − p_y = Σ_{j≠y} e_j / S exact.
    """
    scratch = scratch[: len(x)]
    shifted, e = (scratch, x) if keep_exp else (x, scratch)
    top = x.amax(-1, keepdim=True)
    torch.sub(x, top, out=shifted)
    x_y = shifted.gather(1, y)
    torch.exp(shifted.clamp_(min=LEAST), out=e)
    e.scatter_(1, y, 0.0)
    others = e.sum(-1, keepdim=True)
    if not entropy:
        return top, x_y, others
    return top, x_y, others, torch.mul(shifted, e, out=scratch).sum(-1, keepdim=True)


def record(stats: RowStats, top: Tensor, x_y: Tensor, others: Tensor, energy: Tensor | None = None) -> Tensor:
    """The statistics from the sums of `_softmax`; returns S.  # (C, 1)"""
    e_y = x_y.exp()
    total = others + e_y
    log_total = total.log()
    stats.logp.copy_((x_y - log_total)[:, 0])
    stats.one_minus_p.copy_((others / total)[:, 0])
    stats.lse.copy_((top + log_total)[:, 0])
    if energy is not None:
        stats.entropy.copy_((log_total - (energy + e_y * x_y.clamp(min=LEAST)) / total)[:, 0])
    return total


def _gradient(scratch: Tensor, x: Tensor, offset: Tensor, entropy: Tensor, a: Tensor, b: Tensor | None) -> None:
    """x becomes −p (a + b (log p + H)), log p = x − offset, or p without b; the target's entry is left wrong."""
    x.sub_(offset).clamp_(min=LEAST)
    if b is None:
        x.exp_()
        return
    p = torch.exp(x, out=scratch[: len(x)])
    x.add_(entropy).mul_(-b).sub_(a).mul_(p)


def at_target(s: RowStats, slopes: RowGrads, inverse: Tensor | None) -> Tensor:
    """a·(1 − p_y) − b·p_y (log p_y + H), over the temperature.  # (C,)"""
    value = slopes.logp * s.one_minus_p
    if slopes.entropy is not None:
        value = value - slopes.entropy * s.logp.exp() * (s.logp.clamp(min=LEAST) + s.entropy)
    return value if inverse is None else value * inverse
