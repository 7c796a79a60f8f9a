"""The chunk loop: logits of C active rows, one row step over them, two products. The row step is a parameter.

Work: 2·A·H·V for statistics, 6·A·H·V with the gradient of a known loss, 4·A·H·V + 2·A·H·V for a later backward.
Scratch: C·V dlogits, which take the place of logits in the same dtype; wider logits beside them on an accelerator, none
where product and row step are one (`amx`). Plus the accumulators. [T, V] never exists.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import amx, matmul, torch_rows
from .rows import LossRows, RowGrads, Rows, RowStats

CHUNK_BYTES = {"cpu": 1280, "cuda": 4096}
"""Of a chunk's dlogits, or logits where no gradient is wanted, per vocabulary entry: enough rows that the products run
at full speed and that the accumulator dW is seldom read and written (CPU 320 rows of fp32, accelerators 2048 of bf16 or
1024 of fp32)."""

RowStep = Callable[..., Tensor | None]


@dataclass(frozen=True)
class Head:
    """A language-model head over the packed stream, and how many rows a chunk may take."""

    hidden: Tensor  # (T, H)
    weight: Tensor  # (V, H)
    bias: Tensor | None  # (V,)
    chunk_rows: int | None = None


@dataclass(frozen=True)
class NeedsGrad:
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
    """The gradients, summed over chunks. They come to life when the first row step's scratch is gone."""

    def __init__(self, head: Head, want: NeedsGrad, dw_dtype: torch.dtype, with_product: bool) -> None:
        self.head, self.want, self.dw_dtype = head, want, dw_dtype
        self.dweight_into = amx.dweight_into if with_product else matmul.dweight_into
        self.dh: Tensor | None = None
        self.dw: Tensor | None = None
        self.db = head.weight.new_zeros(len(head.weight), dtype=matmul.wide_dtype(dw_dtype)) if want.bias else None

    def add(self, index: Tensor, d: Tensor, factor: Tensor | None) -> None:
        """One chunk's share, from d times the factor of each row.  # (C,), (C, V), (C, 1)"""
        hidden, weight = self.head.hidden, self.head.weight
        if self.want.weight:
            h = _scale(hidden[index].to(d.dtype), factor)
            first = self.dw is None
            if self.dw is None:
                self.dw = matmul.memory(weight.shape, self.dw_dtype, weight.device)
            self.dweight_into(self.dw, d, h, first)
            del h
        if self.want.hidden:
            dh = _scale(matmul.dhidden(d, weight), factor)
            if self.dh is None:
                self.dh = torch.zeros_like(hidden)
            self.dh.index_copy_(0, index, dh.to(hidden.dtype))
        if self.db is not None:
            self.db += d.sum(0, dtype=self.db.dtype) if factor is None else torch.mv(d.T, factor[:, 0].to(d.dtype))

    def result(self) -> Grads:
        hidden, weight = self.head.hidden, self.head.weight
        dh = torch.zeros_like(hidden) if self.dh is None and self.want.hidden else self.dh
        dw = torch.zeros_like(weight) if self.dw is None and self.want.weight else self.dw
        dw, db = (None if g is None else g.to(weight.dtype) for g in (dw, self.db))
        return dh, dw, db


def _scale(x: Tensor, factor: Tensor | None) -> Tensor:
    """x *= factor, some rows at a time: where dtypes differ, torch widens all that it is given.  # (C, H), (C, 1)"""
    if factor is not None:
        for part, one in zip(x.split(32), factor.split(32), strict=True):
            part.mul_(one)
    return x


@dataclass(frozen=True)
class Pass:
    """What the chunks of one pass over the active rows share."""

    head: Head
    rows: Rows
    stats: RowStats
    want: NeedsGrad
    step: RowStep
    bias: Tensor | None  # (V,) wide
    operand: torch.dtype  # of the products
    memory: Tensor  # one chunk's logits or dlogits
    slopes: RowGrads | None
    loss: LossRows | None
    entropy: bool

    def part(self, a: int, b: int) -> tuple[Tensor, Rows, RowStats, dict[str, Any]]:
        """Hidden rows, softmax rows, statistics and gradients of rows a to b."""
        rows, given = self.rows.part(a, b), {"slopes": self.slopes, "loss": self.loss}
        hidden = self.head.hidden[rows.index].to(self.operand)
        return hidden, rows, self.stats.part(a, b), {n: c if c is None else c.part(a, b) for n, c in given.items()}


def multiply_then_step(p: Pass, a: int, b: int) -> tuple[Tensor, Tensor | None]:
    """Logits by a product, then the row step over them. Returns dlogits and their factor.  # (C, V), (C, 1)"""
    h, rows, stats, given = p.part(a, b)
    vocab, wide = len(p.head.weight), matmul.wide_dtype(p.head.hidden.dtype)
    d = p.memory[: (b - a) * vocab].view(b - a, vocab)
    z = d if d.dtype == wide else torch.empty(b - a, vocab, dtype=wide, device=h.device)
    z = matmul.logits_into(z, h, p.head.weight)
    return d, p.step(z, d if p.want else None, rows, p.bias, stats, **given, entropy=p.entropy)


def step_with_product(p: Pass, a: int, b: int) -> tuple[Tensor | None, Tensor | None]:
    """As `multiply_then_step`, by `amx`, which makes the product itself. No dlogits where no gradient is wanted."""
    h, rows, stats, given = p.part(a, b)
    out = amx.entries(p.memory, b - a, len(p.head.weight)) if p.want else None
    factor = amx.step(h, p.head.weight, out, rows, p.bias, stats, **given)
    return None if out is None else out[:, : b - a].T, factor


def run_chunks(
    head: Head,
    rows: Rows,
    step: RowStep,
    stats: RowStats,
    want: NeedsGrad,
    *,
    slopes: RowGrads | None = None,
    loss: LossRows | None = None,
    entropy: bool = True,
) -> Grads:
    """One pass over the active rows. Fills `stats` unless `slopes` are given; returns gradients if wanted."""
    hidden, weight, device = head.hidden, head.weight, head.hidden.device
    wide, vocab = matmul.wide_dtype(hidden.dtype), len(weight)
    # PyTorch's row step has a faster twin for some operands, which makes the product as well.
    with_product = step is torch_rows.step and amx.multiplies(hidden, weight)
    narrow = hidden.dtype == torch.bfloat16 and (with_product or device.type == "cuda")
    operand = hidden.dtype if narrow else wide
    stored = operand if want else wide  # without gradients, logits are all that there is, and no dW is added to
    limit = amx.CHUNK_ROWS if with_product else CHUNK_BYTES[device.type] // stored.itemsize
    chunks = list(spans(len(rows.index), head.chunk_rows or limit))
    tall = max((b - a for a, b in chunks), default=0)
    if with_product:
        chunk, memory = step_with_product, matmul.memory((amx.padded(tall) * vocab if want else 0,), operand, device)
    else:
        chunk, memory = multiply_then_step, matmul.memory((tall * vocab,), stored, device)
    bias = None if head.bias is None else head.bias.to(wide)
    shared = Pass(head, rows, stats, want, step, bias, operand, memory, slopes, loss, entropy)
    sums = _Sums(head, want, matmul.accumulator_dtype(operand, device, len(chunks)), with_product)
    for a, b in chunks:
        d, factor = chunk(shared, a, b)
        if want and d is not None:
            sums.add(rows.index[a:b], d, factor)
        d = None  # a view, which would keep memory alive
    del memory, shared
    return sums.result()


def run_logit_chunks(
    logits: Tensor,  # (T, V)
    rows: Rows,
    step: RowStep,
    stats: RowStats,
    loss: LossRows,
    want: bool,
    chunk_rows: int | None = None,
) -> Tensor | None:
    """As `run_chunks`, from logits that already exist; the gradient (T, V) is zero at inactive rows."""
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
