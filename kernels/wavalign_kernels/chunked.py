"""The chunk loop: logits of C active rows, one row step over them, two products. The row step is a parameter.

Work: 2·A·H·V for statistics, 6·A·H·V with the gradient of a known loss, 4·A·H·V + 2·A·H·V for a later backward.
Scratch: C·V dlogits, which take the place of logits in the same dtype; wider logits beside them on an accelerator, a
few columns of these on a CPU (`tiles`). Plus the accumulators. [T, V] never exists.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import matmul, tiles, torch_rows
from .rows import LossRows, Rows, RowStats, Slopes

CHUNK_BYTES = {"cpu": 2560, "cuda": 4096}
"""Dlogits of a chunk, per vocabulary entry: enough rows that the products run at full speed and that the accumulator dW
is seldom read and written (CPU 640 rows of fp32 or 1280 of bf16, accelerators 2048 of bf16)."""

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
    by_tiles = step is torch_rows.step and hidden.dtype == torch.bfloat16 and matmul.cpu_multiplies_bf16()
    by_tiles = by_tiles and device.type == "cpu"
    operand = matmul.operand_dtype(hidden.dtype, device) if want or by_tiles else wide
    count, vocab = len(rows.index), weight.shape[0]
    chunks = list(spans(count, head.chunk_rows or CHUNK_BYTES[device.type] // operand.itemsize))
    tall = max((b - a for a, b in chunks), default=0)
    bias = None if head.bias is None else head.bias.to(wide)
    dh = torch.zeros_like(hidden) if want.hidden else None
    dw_dtype = matmul.accumulator_dtype(operand, device, len(chunks))
    dw = torch.empty(weight.shape, dtype=dw_dtype, device=device) if want.weight else None
    db = torch.zeros(vocab, dtype=wide, device=device) if want.bias else None
    d_all = torch.empty(tall if want or not by_tiles else 0, vocab, dtype=operand, device=device)
    for a, b in chunks:
        h = hidden[rows.index[a:b]].to(matmul.operand_dtype(hidden.dtype, device))
        d = d_all[: b - a]
        out, part, known = d if want else None, rows.part(a, b), stats.part(a, b)
        cut = {name: None if c is None else c.part(a, b) for name, c in (("slopes", slopes), ("loss", loss))}
        if by_tiles:
            tiles.step(h, weight, out, part, bias, known, **cut, entropy=entropy)
        else:
            z = d if operand == wide else torch.empty(b - a, vocab, dtype=wide, device=device)
            step(matmul.logits_into(z, h, weight), out, part, bias, known, **cut, entropy=entropy)
            del z  # before dW comes to life
        if dh is not None:
            dh.index_copy_(0, rows.index[a:b], matmul.dhidden(d, weight).to(dh.dtype))
        if dw is not None:
            matmul.dweight_into(dw, d, h, first=a == 0)
        if db is not None:
            db += d.sum(0, dtype=wide)
        del d, out  # or d_all would outlive the next line but one
    del d_all
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
    for a, b in spans(len(rows.index), chunk_rows or CHUNK_BYTES[logits.device.type] // wide.itemsize):
        part = rows.part(a, b)
        z = logits[part.index].to(wide)
        cost = loss.part(a, b) if want else None
        step(z, z if want else None, part, None, stats.part(a, b), loss=cost)
        if grad is not None:
            grad.index_copy_(0, part.index, z.to(grad.dtype))
    return grad
