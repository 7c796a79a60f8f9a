"""The chunk loop: logits of C active rows, one row step over them, two products. The row step is a parameter.

Work: 2·A·H·V for statistics, 6·A·H·V with the gradient of a known loss, 4·A·H·V + 2·A·H·V for a later backward.
Scratch: C·V dlogits, which take the place of logits in the same dtype; wider logits beside them on an accelerator, none
where product and row step are one (`amx`). Plus the accumulators. [T, V] never exists.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import amx, matmul, torch_rows
from .rows import LossRows, Rows, RowStats, Slopes

CHUNK_BYTES = {"cpu": 2560, "cuda": 4096}
"""Dlogits of a chunk, per vocabulary entry: enough rows that the products run at full speed and that the accumulator dW
is seldom read and written (CPU 640 rows of fp32 or 1280 of bf16, accelerators 2048 of bf16)."""

RowStep = Callable[..., Tensor | None]


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


class _Sums:
    """The gradients, summed over chunks."""

    def __init__(self, head: Head, want: Want, operand: torch.dtype, chunks: int, with_product: bool) -> None:
        self.head, device = head, head.hidden.device
        self.dweight_into = amx.dweight_into if with_product else matmul.dweight_into
        dw_dtype, wide = matmul.accumulator_dtype(operand, device, chunks), matmul.wide_dtype(operand)
        self.dh = torch.zeros_like(head.hidden) if want.hidden else None
        self.dw = matmul.memory(head.weight.shape, dw_dtype, device) if want.weight else None
        self.db = torch.zeros(len(head.weight), dtype=wide, device=device) if want.bias else None
        self.begun = False

    def add(self, index: Tensor, h: Tensor, d: Tensor, factor: Tensor | None) -> None:
        """One chunk's share, from d times the factor of each row; h is overwritten.  # (C,), (C, H), (C, V), (C, 1)"""
        if self.dh is not None:
            dh = matmul.dhidden(d, self.head.weight)
            dh = dh if factor is None else dh.mul_(factor)
            self.dh.index_copy_(0, index, dh.to(self.dh.dtype))
            del dh
        if self.dw is not None:
            h = h if factor is None else h.mul_(factor)
            self.dweight_into(self.dw, d, h, first=not self.begun)
        if self.db is not None:
            self.db += d.sum(0, dtype=self.db.dtype) if factor is None else torch.mv(d.T, factor[:, 0].to(d.dtype))
        self.begun = True

    def in_dtype_of_weights(self) -> Grads:
        weight, dw, db = self.head.weight, self.dw, self.db
        if dw is not None:
            dw = (dw if self.begun else dw.zero_()).to(weight.dtype)
        return self.dh, dw, None if db is None else db.to(weight.dtype)


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
    wide, vocab = matmul.wide_dtype(hidden.dtype), len(weight)
    with_product = step is torch_rows.step and amx.multiplies(hidden, weight)
    narrow = hidden.dtype == torch.bfloat16 and (with_product or device.type == "cuda")
    operand = hidden.dtype if narrow else wide
    chunks = list(spans(len(rows.index), head.chunk_rows or CHUNK_BYTES[device.type] // operand.itemsize))
    tall = max((b - a for a, b in chunks), default=0)
    bias = None if head.bias is None else head.bias.to(wide)
    sums = _Sums(head, want, operand, len(chunks), with_product)
    if with_product:
        memory = matmul.memory((amx.padded(tall) * vocab if want else 0,), operand, device)
    else:
        memory = matmul.memory((tall * vocab,), operand if want else wide, device)
    for a, b in chunks:
        h = hidden[rows.index[a:b]].to(operand)
        part, known = rows.part(a, b), stats.part(a, b)
        cut = {name: None if c is None else c.part(a, b) for name, c in (("slopes", slopes), ("loss", loss))}
        if with_product:
            out = amx.entries(memory, b - a, vocab) if want else None
            factor = amx.step(h, weight, out, part, bias, known, **cut)
            d = None if out is None else out[:, : b - a].T
        else:
            d = memory[: (b - a) * vocab].view(b - a, vocab)
            z = d if d.dtype == wide else torch.empty(b - a, vocab, dtype=wide, device=device)
            z = matmul.logits_into(z, h, weight)
            factor = step(z, d if want else None, part, bias, known, **cut, entropy=entropy)
            out = z = None  # before dW comes to life
        if want and d is not None:
            sums.add(rows.index[a:b], h, d, factor)
        d = out = None  # or they would outlive the next line but one
    del memory
    return sums.in_dtype_of_weights()


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
        factor = step(z, z if want else None, part, None, stats.part(a, b), loss=cost)
        if grad is not None:
            z = z if factor is None else z.mul_(factor)
            grad.index_copy_(0, part.index, z.to(grad.dtype))
    return grad
