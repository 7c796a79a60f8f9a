"""The row step for bf16 on a CPU: logits of all rows of a chunk, some columns of the vocabulary at a time.

fp32 logits of a whole chunk would be the peak of memory, and making them for a few rows at a time would widen the
weight again and again. Here every column is widened once, and of the logits only exponentials stay, in bf16 and
relative to their tile's maximum: as exact as the dlogits that they become by a factor per row and tile. Sums are fp32.
"""

import torch
from torch import Tensor

from . import matmul
from .rows import LossRows, Rows, RowStats, Slopes, loss_slopes
from .torch_rows import at_target, block_rows, gradient_into, record

FAR = -1e30
"""Stands for a logit that is left out: exp gives 0, and 0 · FAR is 0, which it would not be for −inf."""


def step(
    h: Tensor,  # (C, H)
    weight: Tensor,  # (V, H)
    d: Tensor | None,  # (C, V) receives dlogits; None: statistics alone
    rows: Rows,
    bias: Tensor | None,  # (V,)
    stats: RowStats,  # written, or read where slopes are given
    *,
    slopes: Slopes | None = None,
    loss: LossRows | None = None,
    entropy: bool = True,
) -> None:
    """As `torch_rows.step`, with the product that makes the logits."""
    inverse = None if rows.inv_temperature is None else rows.inv_temperature[:, None]
    tiles = _Tiles(h.to(stats.logp.dtype), weight, bias, inverse)
    if slopes is None:
        tops = _statistics(tiles, rows.targets, stats, d if loss is not None else None, entropy or loss is not None)
        if loss is None or d is None:
            return
        slopes = loss_slopes(stats.logp, loss)
        a, b = _columns(slopes, inverse)
        _scale(d, tiles, tops, stats, a, b)
    else:
        assert d is not None
        a, b = _columns(slopes, inverse)
        for p, q, z in tiles:
            for at, scratch in _blocks(z):
                own = None if b is None else b[at]
                gradient_into(z[at], scratch, stats.lse[at], stats.entropy[at], a[at], own)
                d[at, p:q] = z[at]
    # Not scatter_, which copies all of a bf16 matrix.
    d[torch.arange(len(d)), rows.targets] = at_target(stats, slopes, rows.inv_temperature).to(d.dtype)


class _Tiles:
    """Iterates over (p, q, logits of the columns p to q); the logits are overwritten by the next."""

    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor | None, inverse: Tensor | None) -> None:
        self.h, self.weight, self.bias, self.inverse = h, weight, bias, inverse
        width, vocab = matmul.slab_rows(weight, h.dtype), len(weight)
        self.spans = [(p, min(p + width, vocab)) for p in range(0, vocab, width)]
        self.z = h.new_empty(len(h) * min(width, vocab))

    def __iter__(self):
        for p, q in self.spans:
            z = self.z[: len(self.h) * (q - p)].view(len(self.h), q - p)
            matmul.logits_into(z, self.h, self.weight[p:q])
            if self.bias is not None:
                z.add_(self.bias[p:q])
            if self.inverse is not None:
                z.mul_(self.inverse)
            yield p, q, z


def _statistics(tiles: _Tiles, y: Tensor, stats: RowStats, kept: Tensor | None, entropy: bool) -> Tensor:
    """Fill `stats`; returns each tile's maximum  # (tiles, C, 1), and leaves exp(x − maximum) in `kept`.

    The target is left out of every sum and comes in at the end, which keeps 1 − p_y exact.
    """
    x_y, found = torch.empty_like(stats.logp), []
    for p, q, z in tiles:
        here = ((y >= p) & (y < q)).nonzero()[:, 0]
        column = y[here] - p
        x_y[here] = z[here, column]
        z[here, column] = FAR
        sums = []
        for at, e in _blocks(z):
            top = z[at].amax(-1, keepdim=True)
            x = z[at].sub_(top)
            torch.exp(x, out=e)
            sums.append([top, e.sum(-1, keepdim=True)])
            if kept is not None:
                kept[at, p:q] = e
            if entropy:
                sums[-1].append(x.mul_(e).sum(-1, keepdim=True))  # not vecdot, which allocates the product
        found.append([torch.cat(parts) for parts in zip(*sums, strict=True)])
    tops, others, *energies = (torch.stack(parts) for parts in zip(*found, strict=True))  # (tiles, C, 1)
    top = torch.maximum(tops.amax(0), x_y[:, None])
    share = (tops - top).exp()
    energy = [((e + others * (tops - top)) * share).sum(0) for e in energies]
    record(stats, top, x_y[:, None] - top, (others * share).sum(0), *energy)
    return tops


def _scale(d: Tensor, tiles: _Tiles, tops: Tensor, stats: RowStats, a: Tensor, b: Tensor | None) -> None:
    """exp(x − top) becomes −p (a + b (log p + H)), with log p from the rounded exponential where b asks for it."""
    wide = tiles.z
    for (p, q), top in zip(tiles.spans, tops, strict=True):
        offset = top - stats.lse[:, None]
        share = offset.exp()
        for at, e in _blocks(wide[: len(d) * (q - p)].view(len(d), q - p)):
            e.copy_(d[at, p:q])
            if b is None:
                e.mul_(-a[at] * share[at])
            else:
                tiny = torch.finfo(e.dtype).tiny
                slope = e.clamp(min=tiny).log_().add_(offset[at] + stats.entropy[at, None]).mul_(b[at]).add_(a[at])
                e.mul_(-share[at]).mul_(slope)
            d[at, p:q] = e


def _columns(slopes: Slopes, inverse: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """∂L/∂logp and ∂L/∂H over the temperature, (C, 1) each."""
    given = [None if s is None else s[:, None] for s in (slopes.logp, slopes.entropy)]
    a, b = (s if s is None or inverse is None else s * inverse for s in given)
    assert a is not None
    return a, b


def _blocks(z: Tensor):
    """Yield (rows, a scratch of their shape), as many rows as fit the second-level cache."""
    height = block_rows(z)
    scratch = torch.empty(height, z.shape[1], dtype=z.dtype)
    for i in range(0, len(z), height):
        j = min(i + height, len(z))
        yield slice(i, j), scratch[: j - i]
