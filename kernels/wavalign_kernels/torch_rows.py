"""The row step in PyTorch, for CPUs and as a fallback: one pass over logits that the matrix product just made.

Blocks of rows are small enough for the second-level cache, so that the passes below cost arithmetic, not memory.
"""

import torch
from torch import Tensor

from .rows import LossRows, Rows, RowStats, Slopes, loss_slopes

BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 28}


def step(
    z: Tensor,  # (C, V) logits, overwritten
    d: Tensor | None,  # (C, V) receives dlogits, may be z; None: statistics alone
    rows: Rows,
    bias: Tensor | None,  # (V,)
    stats: RowStats,  # written, or read where slopes are given
    *,
    slopes: Slopes | None = None,
    loss: LossRows | None = None,
    entropy: bool = True,
) -> None:
    """Statistics, statistics and dlogits of `loss`, or dlogits of `slopes` (statistics known)."""
    count, vocab = z.shape
    height = max(1, BLOCK_BYTES[z.device.type] // (vocab * z.element_size()))
    scratch = torch.empty(min(height, count), vocab, dtype=z.dtype, device=z.device)
    for a in range(0, count, height):
        b = min(a + height, count)
        x, r, s = z[a:b], rows.part(a, b), stats.part(a, b)
        if bias is not None:
            x.add_(bias)
        if r.inv_temperature is not None:
            x.mul_(r.inv_temperature[:, None])
        if slopes is not None:
            _given(x, scratch[: b - a], r, s, slopes.part(a, b))
        else:
            _softmax(x, scratch[: b - a], r, s, None if loss is None else loss.part(a, b), entropy)
        if d is not None and d is not z:
            d[a:b] = x


def _softmax(x: Tensor, e: Tensor, r: Rows, s: RowStats, loss: LossRows | None, entropy: bool) -> None:
    """Statistics of x; with `loss`, x becomes dlogits.

    With m = max x, e_j = exp(x_j − m), S = Σ e:  logp = x_y − m − log S,  H = log S − Σ e_j (x_j − m) / S.
    The target is left out of the sums and added at the end, which makes 1 − p_y = Σ_{j≠y} e_j / S exact.
    """
    y = r.targets[:, None]
    top = x.amax(-1, keepdim=True)
    x.sub_(top)
    torch.exp(x, out=e)
    x_y, e_y = x.gather(1, y), e.gather(1, y)
    e.scatter_(1, y, 0.0)
    others = e.sum(-1, keepdim=True)
    total = others + e_y
    log_total = total.log()
    s.logp.copy_((x_y - log_total)[:, 0])
    s.miss.copy_((others / total)[:, 0])
    s.lse.copy_((top + log_total)[:, 0])
    if entropy:
        energy = torch.linalg.vecdot(e, x)[:, None] + e_y * x_y
        s.entropy.copy_((log_total - energy / total)[:, 0])
    if loss is None:
        return
    slopes = loss_slopes(s.logp, loss)
    share = 1 / total if r.inv_temperature is None else r.inv_temperature[:, None] / total
    if slopes.entropy is None:
        torch.mul(e, -slopes.logp[:, None] * share, out=x)
    else:
        # −p_j (a + b (log p_j + H)), log p_j = x_j − log S
        slope_h = slopes.entropy[:, None] * share
        offset = slopes.logp[:, None] * share + slope_h * (s.entropy[:, None] - log_total)
        x.mul_(-slope_h).sub_(offset).mul_(e)
    x.scatter_(1, y, _at_target(r, s, slopes, e_y / total))


def _given(x: Tensor, e: Tensor, r: Rows, s: RowStats, slopes: Slopes) -> None:
    """x becomes dlogits of a·logp + b·H, the statistics being known."""
    y = r.targets[:, None]
    x.sub_(s.lse[:, None])
    a = slopes.logp[:, None] if r.inv_temperature is None else (slopes.logp * r.inv_temperature)[:, None]
    if slopes.entropy is None:
        p_y = x.gather(1, y)  # unused without an entropy slope
        x.exp_().mul_(-a)
    else:
        b = slopes.entropy[:, None] if r.inv_temperature is None else (slopes.entropy * r.inv_temperature)[:, None]
        torch.exp(x, out=e)
        p_y = e.gather(1, y)
        x.add_(s.entropy[:, None]).mul_(-b).sub_(a).mul_(e)
    x.scatter_(1, y, _at_target(r, s, slopes, p_y))


def _at_target(r: Rows, s: RowStats, slopes: Slopes, p_y: Tensor) -> Tensor:
    """a·(1 − p_y) − b·p_y (log p_y + H), over the temperature.  # (R, 1)"""
    value = slopes.logp * s.miss
    if slopes.entropy is not None:
        value = value - slopes.entropy * p_y[:, 0] * (s.logp + s.entropy)
    return (value if r.inv_temperature is None else value * r.inv_temperature)[:, None]
