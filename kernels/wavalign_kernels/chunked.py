"""The chunk loop: logits of C active rows, one row step over them, two products. The row step is a parameter.

Work: 2·A·H·V for statistics, 6·A·H·V with the gradient of a known loss, 4·A·H·V + 2·A·H·V for a later backward.
Scratch: C·V logits (and C·V dlogits where their dtype differs) plus the accumulators; [T, V] never exists.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import matmul
from .rows import LossRows, Rows, RowStats, Slopes

CHUNK_ROWS = {"cpu": 512, "cuda": 2048}
"""Enough rows that the products run at full speed and that the accumulator dW is seldom read and written."""

RowStep = Callable[..., None]


@dataclass(frozen=True)
class Head:
    """A language-model head over the packed stream, and how many rows a chunk may take."""

    hidden: Tensor  # (T, H)
    weight: Tensor  # (V, H)
    bias: Tensor | None  # (V,)
    chunk_rows: int | None = None


@dataclass(frozen=True)
class Want:
    """The gradients that are asked for."""

    hidden: bool
    weight: bool
    bias: bool

    def __bool__(self) -> bool:
        return self.hidden or self.weight or self.bias


Grads = tuple[Tensor | None, Tensor | None, Tensor | None]  # (T, H), (V, H), (V,)


def spans(count: int, limit: int) -> Iterator[tuple[int, int]]:
    """Cut range(count) into the fewest spans of at most `limit`, of even size."""
    pieces = -(-count // limit)
    for i in range(pieces):
        yield i * count // pieces, (i + 1) * count // pieces


def sweep(
    head: Head,
    rows: Rows,
    step: RowStep,
    stats: RowStats,
    want: Want,
    *,
    slopes: Slopes | None = None,
    loss: LossRows | None = None,
    entropy: bool = True,
) -> Grads:
    """One pass over the active rows. Fills `stats` unless `slopes` are given; returns gradients if wanted."""
    hidden, weight, device = head.hidden, head.weight, head.hidden.device
    wide = matmul.wide_dtype(hidden.dtype)
    operand = matmul.operand_dtype(hidden.dtype, device)
    count, vocab = len(rows.index), weight.shape[0]
    limit = head.chunk_rows or CHUNK_ROWS[device.type]
    bias = None if head.bias is None else head.bias.to(wide)
    dh = torch.zeros_like(hidden) if want.hidden else None
    dw = torch.empty(weight.shape, dtype=wide, device=device) if want.weight else None
    db = torch.zeros(vocab, dtype=wide, device=device) if want.bias else None
    height = max((b - a for a, b in spans(count, limit)), default=0)
    z_all = torch.empty(height, vocab, dtype=wide, device=device)
    d_all = torch.empty(height, vocab, dtype=operand, device=device) if want and operand != wide else z_all
    for a, b in spans(count, limit):
        part = rows.part(a, b)
        h = hidden[part.index].to(operand)
        z, d = z_all[: b - a], d_all[: b - a]
        if d_all is z_all:
            d = z
        matmul.logits_into(z, h, weight)
        cut = None if slopes is None else slopes.part(a, b)
        cost = None if loss is None else loss.part(a, b)
        step(z, d if want else None, part, bias, stats.part(a, b), slopes=cut, loss=cost, entropy=entropy)
        if dh is not None:
            dh.index_copy_(0, part.index, matmul.dhidden(d, weight).to(dh.dtype))
        if dw is not None:
            matmul.dweight_into(dw, d, h, first=a == 0)
        if db is not None:
            db += d.sum(0, dtype=wide)
    del z_all, d_all
    if dw is not None:
        dw = (dw if count else dw.zero_()).to(weight.dtype)
    return dh, dw, None if db is None else db.to(weight.dtype)


def sweep_logits(
    logits: Tensor,  # (T, V)
    rows: Rows,
    step: RowStep,
    stats: RowStats,
    loss: LossRows,
    want: bool,
    chunk_rows: int | None = None,
) -> Tensor | None:
    """As `sweep`, from logits that already exist; the gradient (T, V) is zero at inactive rows."""
    wide = matmul.wide_dtype(logits.dtype)
    grad = torch.zeros_like(logits, memory_format=torch.contiguous_format) if want else None
    for a, b in spans(len(rows.index), chunk_rows or CHUNK_ROWS[logits.device.type]):
        part = rows.part(a, b)
        z = logits[part.index].to(wide)
        cost = loss.part(a, b) if want else None
        step(z, z if want else None, part, None, stats.part(a, b), loss=cost)
        if grad is not None:
            grad.index_copy_(0, part.index, z.to(grad.dtype))
    return grad
