"""The row step for bf16 on a CPU with AMX, its product included: what `amx.c` does, built with the system's compiler.

PyTorch rounds a bf16 product on a CPU to bf16, and reads it several times to make a softmax. Here a block of 32 × 32
fp32 logits x becomes exponentials in the first-level cache. Without a slope of the entropy that is one pass, as nothing
of the row's factor is needed before its end (a = ∂L/∂logp, τ the temperature, y the target, S = Σ e):

    dlogits = factor · e,   e_j = exp(x_j − r),   e_y = −Σ_{j≠y} e_j,   factor = −a / (τ S)

dh = factor · (e W) and dW = eᵀ (factor · h) take e as it is. With one, and for a later backward, a second pass makes
dlogits. r, known before the pass, is the target's logit; if any row's maximum lies far above, the chunk's pass is made
again relative to the maxima.
"""

import ctypes
import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .native import Struct, load, run_spans, struct
from .rows import LossRows, RowGrads, Rows, RowStats, loss_slopes
from .torch_rows import at_target, record

BLOCK = 32
"""Rows, and vocabulary entries, of a block; the width of the tiles."""
CHUNK_ROWS = 1280
"""Few chunks: a single one makes dW in bf16, where several add it up in fp32, twice the memory."""
FAR = 20.0
"""How far a maximum may lie from r: sums to exp(20) lose nothing in fp32, nor their exponentials in bf16."""
UNITS = {"amx_tile", "amx_bf16", "avx512f", "avx512_bf16"}
OPTIONS = ["-mavx512f", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]

# As in amx.c.
_HEAD = "bias scale target"
_Product = struct("Product", "left right", "vocab depth columns")
_Statistics = struct("Statistics", f"{_HEAD} reference others energy top own out")
_Gradient = struct("Gradient", f"{_HEAD} lse entropy a b out")
_Sum = struct("Sum", "rounded sum")


def step(
    h: Tensor,  # (C, H)
    weight: Tensor,  # (V, H)
    out: Tensor | None,  # (V, C rounded up to blocks) receives dlogits but for the factor; None: statistics alone
    rows: Rows,
    bias: Tensor | None,  # (V,) fp32
    stats: RowStats,  # written, or read where slopes are given
    *,
    slopes: RowGrads | None = None,
    loss: LossRows | None = None,
) -> Tensor | None:
    """As `torch_rows.step`, with the product that makes the logits; returns the factor.  # (C, 1), None: 1"""
    head = _Head.of(h, weight, rows, bias)
    if slopes is None:
        one_pass = loss is not None and loss.entropy_weights is None
        total, others = head.statistics(stats, out if one_pass else None)
        if loss is None or out is None:
            return None
        slopes = loss_slopes(stats.logp, loss)
        if one_pass:
            _set_targets(out, rows, -others)
            return -(slopes.logp * head.scale[: len(h)])[:, None] / total
    assert out is not None
    head.gradient(stats, slopes, out)
    _set_targets(out, rows, at_target(stats, slopes, rows.inv_temperature))
    return None


def dweight_into(dw: Tensor, d: Tensor, h: Tensor, first: bool) -> None:
    """As `matmul.dweight_into`, with d a view of `step`'s out: beyond its C rows are zeros, and all are multiplied.

    dw (V, H) fp32, or bf16 where this chunk is the only one; d (C, V), h (C, H).
    """
    rounded = dw.dtype == torch.bfloat16
    assert dw.data_ptr() % 64 == 0 and (first or not rounded)  # what amx.c streams goes by lines of the cache
    if not rounded and first:
        dw.zero_()
    _call("product", d.T, _tiles(h.T), [_Sum(*((dw, None) if rounded else (None, dw)))] * len(_spans(len(dw))))


def entries(memory: Tensor, count: int, vocab: int) -> Tensor:
    """`step`'s out for count rows: memory in which each row of the vocabulary begins a line of the cache."""
    assert memory.data_ptr() % 64 == 0
    return memory[: padded(count) * vocab].view(vocab, padded(count))


def padded(count: int) -> int:
    """Rows in whole blocks."""
    return -(-count // BLOCK) * BLOCK


def multiplies(hidden: Tensor, weight: Tensor) -> bool:
    """Whether `step` can take these; the first time this is asked, `amx.c` is built."""
    fits = hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu"
    fits = fits and weight.shape[1] % BLOCK == 0 and min(weight.shape) >= BLOCK
    return fits and library() is not None


def _set_targets(out: Tensor, rows: Rows, values: Tensor) -> None:
    out[rows.targets, torch.arange(len(values))] = values.to(out.dtype)


@dataclass(frozen=True)
class _Head:
    """One chunk's operands, in whole blocks: what is beyond the C rows has exponentials of 0."""

    weight: Tensor  # (V, H) bf16
    tiles: Tensor  # (rows / 16, H / 32, 16, 16, 2) bf16
    bias: Tensor | None  # (V,)
    scale: Tensor  # (rows,)
    target: Tensor  # (rows,) int32
    r: Tensor  # (C,) the target's logit, as torch makes it

    @staticmethod
    def of(h: Tensor, weight: Tensor, rows: Rows, bias: Tensor | None) -> "_Head":
        pairs = zip(
            h.split(BLOCK), rows.targets.split(BLOCK), strict=True
        )  # widened together they would be much memory
        r = torch.cat([(part.float() * weight[y]).sum(1) for part, y in pairs])
        r = r if bias is None else r + bias[rows.targets]
        scale = torch.ones_like(r) if rows.inv_temperature is None else rows.inv_temperature
        return _Head(weight, _tiles(h), bias, _in_blocks(scale, 1.0), _in_blocks(rows.targets.int(), -1), r * scale)

    def statistics(self, stats: RowStats, out: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fills stats, and out with exponentials; returns Σ e_j and Σ_{j≠y} e_j.  # (C, 1), (C,)"""
        reference, count = self.r.clamp(min=-1e30), len(self.r)
        spans, rows = len(_spans(len(self.weight))), len(self.scale)
        while True:
            sums = torch.zeros(spans, 2, rows, dtype=torch.float64)
            tops, owns = self.scale.new_full((spans, rows), -torch.inf), self.scale.new_zeros(spans, rows)
            head = self.bias, self.scale, self.target, _in_blocks(reference, torch.inf)
            parts = [_Statistics(*head, *sums[i], tops[i], owns[i], out) for i in range(spans)]
            _call("statistics", self.weight, self.tiles, parts)
            top = tops.amax(0)[:count]
            far = (top.abs() > FAR) & (top > -torch.inf)  # after +∞ everything is NaN, as it should be
            if not far.any():
                break
            reference = torch.where(far, reference + top, reference)
        others, energy, own = (c[:count].to(stats.logp.dtype) for c in (*sums.sum(0), owns.sum(0)))
        return record(stats, *(c[:, None] for c in (reference, own, others, energy))), others

    def gradient(self, stats: RowStats, slopes: RowGrads, out: Tensor) -> None:
        """Fills out with dlogits, the target's left wrong."""
        scale = self.scale[: len(self.r)]
        zero = torch.zeros_like(scale)
        a, b = slopes.logp * scale, zero if slopes.entropy is None else slopes.entropy * scale
        rest = [_in_blocks(c, 0.0) for c in (zero if slopes.entropy is None else stats.entropy, a, b)]
        part = _Gradient(self.bias, self.scale, self.target, _in_blocks(stats.lse, torch.inf), *rest, out)
        _call("gradient", self.weight, self.tiles, [part] * len(_spans(len(self.weight))))


def _call(name: str, left: Tensor, tiles: Tensor, parts: list[Struct]) -> None:
    """A thread for each part of the vocabulary."""
    lib, product = library(), _Product(left, tiles, len(left), left.stride(0), 16 * len(tiles))
    assert lib is not None

    def run(part: Struct, span: tuple[int, int]) -> None:
        getattr(lib, name)(ctypes.byref(product), ctypes.byref(part), *map(ctypes.c_long, span))

    run_spans(run, parts, _spans(len(left)))


def _tiles(x: Tensor) -> Tensor:
    """AMX's right operand, pairs of its width side by side.  # (C, width) -> (rows / 16, width / 32, 16, 16, 2)"""

    def cut(part: Tensor) -> Tensor:
        rows, width = part.shape
        return part.reshape(rows // 16, 16, width // 32, 16, 2).permute(0, 2, 3, 1, 4)

    dim = 1 if len(x) % BLOCK == 0 else 0  # the one that need not be in whole blocks; a copy of all would cost memory
    whole, rest = x.tensor_split([x.shape[dim] // BLOCK * BLOCK], dim)
    beyond = padded(rest.shape[dim]) - rest.shape[dim]
    return torch.cat([cut(whole), cut(F.pad(rest, (0, beyond) if dim else (0, 0, 0, beyond)))], dim).contiguous()


def _spans(vocab: int) -> list[tuple[int, int]]:
    """The vocabulary in whole blocks, a span for each thread."""
    blocks = -(-vocab // BLOCK)
    pieces = min(blocks, torch.get_num_threads())
    edges = [min(vocab, i * blocks // pieces * BLOCK) for i in range(pieces + 1)]
    return list(zip(edges, edges[1:], strict=False))


def _in_blocks(column: Tensor, beyond: float) -> Tensor:
    """(C,) -> (rows,)"""
    assert column.dtype in (torch.float32, torch.int32)  # C sees a bare pointer
    return F.pad(column, (0, padded(len(column)) - len(column)), value=beyond)


@functools.cache
def library() -> ctypes.CDLL | None:
    """`amx.c`, or None: see `native.load`."""
    return load(
        "amx.c",
        UNITS,
        OPTIONS,
        without="bf16 heads are multiplied in fp32, several times slower",
        needs="Linux 5.16, a C compiler that knows AMX (gcc 11, clang 12)",
        start="request_tiles",
    )
