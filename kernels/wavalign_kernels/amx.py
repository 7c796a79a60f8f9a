"""The row step for bf16 on a CPU with AMX, its product included: what `amx.c` does, built with the system's compiler.

PyTorch rounds a bf16 product on a CPU to bf16, and reads it several times to make a softmax. Here a block of 32 × 32
fp32 logits becomes exponentials in the first-level cache, and of the row's factor nothing is needed before the end:

    dlogits = factor · e,   e_j = exp(x_j − r),   e_y = −Σ_{j≠y} e_j,   factor = −a · exp(r − lse) / τ

so that dh = factor · (e W) and dW = eᵀ (factor · h) take e as it is, and p is never formed. r, known before the pass,
is the target's logit. Where the row's maximum lies far above it, the pass is made again relative to the maximum.
"""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import LossRows, Rows, RowStats, Slopes, loss_slopes
from .torch_rows import at_target, record

BLOCK = 32
"""Rows, and vocabulary entries, of a block; the width of the tiles."""
FAR = 20.0
"""How far a maximum may lie above r: sums to exp(20) lose nothing in fp32, nor their exponentials in bf16."""
UNITS = {"amx_tile", "amx_bf16", "avx512f", "avx512_bf16"}
FLAGS = ["-O3", "-std=gnu11", "-shared", "-fPIC", "-mavx512f", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]


class _Struct(ctypes.Structure):
    """Pointers to tensors, which are kept alive, and numbers."""

    def __init__(self, *values: Tensor | int | None) -> None:
        super().__init__(*(v.data_ptr() if isinstance(v, Tensor) else v for v in values))
        self.kept = values


def _struct(name: str, pointers: str, numbers: str = "") -> type[_Struct]:
    kinds = [(field, ctypes.c_void_p) for field in pointers.split()]
    return type(name, (_Struct,), {"_fields_": kinds + [(field, ctypes.c_long) for field in numbers.split()]})


# As in amx.c.
_HEAD = "bias scale target"
_Product = _struct("Product", "left right", "vocab width rows")
_Statistics = _struct("Statistics", f"{_HEAD} reference others energy top own out")
_Gradient = _struct("Gradient", f"{_HEAD} lse entropy a b out")
_Sum = _struct("Sum", "rounded sum")


def step(
    h: Tensor,  # (C, H)
    weight: Tensor,  # (V, H)
    out: Tensor | None,  # (V, C rounded up to blocks) receives dlogits but for the factor; None: statistics alone
    rows: Rows,
    bias: Tensor | None,  # (V,) fp32
    stats: RowStats,  # written, or read where slopes are given
    *,
    slopes: Slopes | None = None,
    loss: LossRows | None = None,
) -> Tensor | None:
    """As `torch_rows.step`, with the product that makes the logits; returns the factor.  # (C, 1), None: 1"""
    head = _Head.of(h, weight, rows, bias)
    if slopes is None:
        one_pass = loss is not None and loss.entropy_weights is None
        reference, others = head.statistics(stats, out if one_pass else None)
        if loss is None or out is None:
            return None
        slopes = loss_slopes(stats.logp, loss)
        if one_pass:
            _set_targets(out, rows, -others)
            return (-slopes.logp * (reference - stats.lse).exp() * head.scale[: len(h)])[:, None]
    assert out is not None
    head.gradient(stats, slopes, out)
    _set_targets(out, rows, at_target(stats, slopes, rows.inv_temperature))
    return None


def dweight_into(dw: Tensor, d: Tensor, h: Tensor, first: bool) -> None:
    """As `matmul.dweight_into`, with d a view of `step`'s out.  # (V, H) bf16 or fp32, (C, V), (C, H)"""
    rounded = dw.dtype == torch.bfloat16
    if not rounded and first:
        dw.zero_()
    _call("product", d.T, _tiles(h.T), [_Sum(*((dw, None) if rounded else (None, dw)))] * len(_spans(len(dw))))


def entries(memory: Tensor, count: int, vocab: int) -> Tensor:
    """`step`'s out for count rows: memory in which each row of the vocabulary begins a line of the cache."""
    return memory[: padded(count) * vocab].view(vocab, padded(count))


def padded(count: int) -> int:
    """Rows in whole blocks."""
    return -(-count // BLOCK) * BLOCK


def multiplies(hidden: Tensor, weight: Tensor) -> bool:
    """Whether `step` can take these; the first time this is asked, `amx.c` is built."""
    fits = hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu"
    fits = fits and weight.shape[1] % BLOCK == 0 and len(weight) >= BLOCK
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
    own: Tensor  # (C,) the target's logit, in bf16: near enough to be r

    @staticmethod
    def of(h: Tensor, weight: Tensor, rows: Rows, bias: Tensor | None) -> "_Head":
        own = (h * weight[rows.targets]).sum(1).float()
        own = own if bias is None else own + bias[rows.targets]
        scale = torch.ones_like(own) if rows.inv_temperature is None else rows.inv_temperature
        return _Head(weight, _tiles(h), bias, _in_blocks(scale, 1.0), _in_blocks(rows.targets.int(), -1), own * scale)

    def statistics(self, stats: RowStats, out: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fills stats, and out with exponentials; returns r and Σ_{j≠y} e_j.  # (C,), (C,)"""
        reference, count = self.own.clamp(min=-1e30), len(self.own)
        spans, rows = len(_spans(len(self.weight))), len(self.scale)
        while True:
            sums = torch.zeros(spans, 2, rows, dtype=torch.float64)
            tops, owns = self.scale.new_full((spans, rows), -torch.inf), self.scale.new_zeros(spans, rows)
            head = self.bias, self.scale, self.target, _in_blocks(reference, torch.inf)
            parts = [_Statistics(*head, *sums[i], tops[i], owns[i], out) for i in range(spans)]
            _call("statistics", self.weight, self.tiles, parts)
            top = tops.amax(0)[:count]
            if not (top > FAR).any():
                break
            reference = reference + top.clamp(min=0)
        others, energy, own = (c[:count].to(stats.logp.dtype) for c in (*sums.sum(0), owns.sum(0)))
        record(stats, *(c[:, None] for c in (reference, own, others, energy)))
        return reference, others

    def gradient(self, stats: RowStats, slopes: Slopes, out: Tensor) -> None:
        """Fills out with dlogits, the target's left wrong."""
        scale = self.scale[: len(self.own)]
        zero = torch.zeros_like(scale)
        a, b = slopes.logp * scale, zero if slopes.entropy is None else slopes.entropy * scale
        rest = [_in_blocks(c, 0.0) for c in (zero if slopes.entropy is None else stats.entropy, a, b)]
        part = _Gradient(self.bias, self.scale, self.target, _in_blocks(stats.lse, torch.inf), *rest, out)
        _call("gradient", self.weight, self.tiles, [part] * len(_spans(len(self.weight))))


def _call(name: str, left: Tensor, tiles: Tensor, parts: list[_Struct]) -> None:
    """A thread for each part of the vocabulary: ctypes lets go of the interpreter."""
    lib, product = library(), _Product(left, tiles, len(left), left.stride(0), 16 * len(tiles))
    assert lib is not None

    def run(part: _Struct, span: tuple[int, int]) -> None:
        getattr(lib, name)(ctypes.byref(product), ctypes.byref(part), *map(ctypes.c_long, span))

    first, *others = zip(parts, _spans(len(left)), strict=True)
    with ThreadPoolExecutor(max(1, len(others))) as pool:  # starts a thread when there is something for it to do
        waiting = [pool.submit(run, *other) for other in others]
        run(*first)
        for done in waiting:
            done.result()


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
    return F.pad(column, (0, padded(len(column)) - len(column)), value=beyond)


@functools.cache
def library() -> ctypes.CDLL | None:
    """`amx.c`, compiled once on a machine; None without the units, with a warning where it could be had."""
    try:
        if not UNITS <= set(Path("/proc/cpuinfo").read_text().split()):
            return None
    except OSError:
        return None
    try:
        lib = ctypes.CDLL(str(_compiled(os.environ.get("CC", "cc"))))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        warnings.warn(
            f"bf16 heads are multiplied in fp32, several times slower: amx.c of {__package__} was not built ({said}); "
            "needed: a C compiler that knows AMX (gcc 11, clang 12) as cc or in CC, and a writable XDG_CACHE_HOME or "
            "~/.cache",
            stacklevel=2,
        )
        return None
    return lib if lib.request_tiles() == 0 else None


def _compiled(compiler: str) -> Path:
    source = Path(__file__).with_name("amx.c")
    digest = hashlib.sha256(source.read_bytes() + " ".join((compiler, *FLAGS)).encode()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wavalign_kernels"
    path = folder / f"amx-{digest}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            made = Path(fresh) / path.name
            subprocess.run([compiler, *FLAGS, source, "-o", made], check=True, capture_output=True, text=True)
            made.replace(path)  # whole or not at all, whoever else is at it
    return path
