"""The three matrix products of a chunk. They sum in fp32 (fp64 for fp64), whatever the storage dtype.

bf16: on an accelerator torch.mm multiplies bf16 and returns fp32 (out_dtype). On a CPU it rounds its result to bf16.
That is enough for dh and db; logits and dW need fp32 and are made by `amx`, or without AMX as fp16 is.
fp16: its range is too small for dlogits, and CPUs multiply it slowly. Slabs of it are widened and multiplied in fp32,
as are those of bf16 without AMX; dh of bf16 only where the CPU cannot multiply bf16 at all.
"""

import functools
import math
import mmap
from collections.abc import Iterator

import torch
from torch import Tensor

from .native import has_units

SLAB_BYTES = 4 << 20
"""Widened slabs stay in a CPU's last-level cache: 2 to 16 MiB measure alike, the whole weight a third slower."""
LARGE_BYTES = 1 << 20


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of logits, statistics and accumulators."""
    return torch.promote_types(dtype, torch.float32)


def accumulator_dtype(operand: torch.dtype, device: torch.device, chunks: int) -> torch.dtype:
    """Dtype of dW while chunks are added to it: one chunk's product may be rounded at once, where that happens last."""
    return operand if chunks == 1 and device.type == "cpu" else wide_dtype(operand)


def logits_into(z: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    """z = h @ weight.T, returned  # (C, V) wide, (C, H), (V, H)"""
    if h.dtype == weight.dtype == z.dtype:
        torch.mm(h, weight.T, out=z)
    elif h.device.type == "cuda" and h.dtype == weight.dtype:
        torch.mm(h, weight.T, out_dtype=z.dtype, out=z)
    else:
        for a, b, slab in _wide_slabs(weight, z.dtype):
            torch.mm(h, slab.T, out=z[:, a:b])
    return z


def dhidden(d: Tensor, weight: Tensor) -> Tensor:
    """d @ weight, rounded at most once  # (C, V), (V, H) -> (C, H)"""
    wide = wide_dtype(d.dtype)
    if d.dtype == weight.dtype:
        # CPUs sum in fp32 and round the result; accelerators may add partial sums in bf16 unless told otherwise.
        return torch.mm(d, weight) if d.dtype == wide or d.device.type == "cpu" else torch.mm(d, weight, out_dtype=wide)
    if weight.dtype == torch.bfloat16 and d.device.type == "cpu" and multiplies_bf16():
        return torch.mm(d.to(weight.dtype), weight)
    out = d.new_zeros(d.shape[0], weight.shape[1])
    for a, b, slab in _wide_slabs(weight, d.dtype):
        out.addmm_(d[:, a:b], slab)
    return out


def dweight_into(dw: Tensor, d: Tensor, h: Tensor, first: bool) -> None:
    """dw = d.T @ h on the first chunk, dw += d.T @ h after it.  # (V, H), (C, V), (C, H)

    dw is as `accumulator_dtype` says.
    """
    if d.dtype == dw.dtype:
        torch.mm(d.T, h, out=dw) if first else dw.addmm_(d.T, h)
    elif first:
        torch.mm(d.T, h, out_dtype=dw.dtype, out=dw)
    elif _accumulates_wide(d.dtype, d.device):
        torch.addmm(dw, d.T, h, out_dtype=dw.dtype, out=dw)
    else:
        dw.add_(torch.mm(d.T, h, out_dtype=dw.dtype))


@functools.cache
def multiplies_bf16() -> bool:
    """Whether the CPU is faster at bf16 than at fp32."""
    return has_units({"avx512_bf16"})


def memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As torch.empty. Large, on a Linux CPU: with all its pages at once, where each first touch would be an interrupt.

    Huge pages would be fewer, but virtual machines take them from their guests and are slow to give them back.
    """
    size = math.prod(shape)
    if device.type != "cpu" or size * dtype.itemsize < LARGE_BYTES or not hasattr(mmap, "MAP_POPULATE"):
        return torch.empty(shape, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize, flags=flags), dtype=dtype).view(shape)


def _wide_slabs(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (a, b, weight[a:b] in dtype), one buffer for all."""
    vocab, step = len(weight), max(1, SLAB_BYTES // (weight.shape[1] * dtype.itemsize))
    buffer = torch.empty(min(step, vocab), weight.shape[1], dtype=dtype, device=weight.device)
    for a in range(0, vocab, step):
        b = min(a + step, vocab)
        yield a, b, buffer[: b - a].copy_(weight[a:b])


@functools.cache
def _accumulates_wide(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch adds a half-precision product onto an fp32 matrix (refused before pytorch#167931)."""
    a = torch.ones(16, 16, dtype=dtype, device=device)
    out = torch.ones(16, 16, dtype=torch.float32, device=device)
    try:
        torch.addmm(out, a, a, out_dtype=torch.float32, out=out)
    except RuntimeError:
        return False
    return bool((out == 17).all())
