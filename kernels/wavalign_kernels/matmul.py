"""The three matrix products, accumulated in fp32 (fp64 for fp64) whatever the storage dtype.

bf16 multiplies as bf16 where that is fast. On an accelerator torch.mm returns such products in fp32 (out_dtype). On a
CPU it rounds them to bf16, which logits and a sum over chunks cannot bear: they are made from widened slabs, and oneDNN
may narrow these again. They hold bf16 values, so that nothing is lost, and the result stays fp32. fp16 has too little
range for dlogits, and CPUs are slow at it: it is widened slab by slab and multiplied in fp32.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

SLAB_BYTES = 4 << 20
"""Widened slabs stay in a CPU's last-level cache: 2 to 16 MiB measure alike, the whole weight a third slower."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of logits, statistics and accumulators."""
    return torch.promote_types(dtype, torch.float32)


def operand_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Dtype in which hidden and dlogits enter the products."""
    narrow = dtype == torch.bfloat16 and (device.type == "cuda" or cpu_multiplies_bf16())
    return dtype if narrow else wide_dtype(dtype)


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
        wide = h.to(z.dtype)
        with _exact_products(weight.dtype):
            for a, b, slab in _wide_slabs(weight, z.dtype):
                torch.mm(wide, slab.T, out=z[:, a:b])
    return z


def slab_rows(weight: Tensor, dtype: torch.dtype) -> int:
    """How many rows of the weight make a slab once they are widened to dtype."""
    return max(1, min(len(weight), SLAB_BYTES // (weight.shape[1] * dtype.itemsize)))


def dhidden(d: Tensor, weight: Tensor) -> Tensor:
    """d @ weight, rounded at most once  # (C, V), (V, H) -> (C, H)"""
    wide = wide_dtype(d.dtype)
    if d.dtype == weight.dtype:
        # CPUs sum in fp32 and round the result; accelerators may add partial sums in bf16 unless told otherwise.
        return torch.mm(d, weight) if d.dtype == wide or d.device.type == "cpu" else torch.mm(d, weight, out_dtype=wide)
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
    elif d.device.type != "cuda":
        _dweight_by_slabs(dw, d, h.to(dw.dtype), first)
    elif first:
        torch.mm(d.T, h, out_dtype=dw.dtype, out=dw)
    elif _accumulates_wide(d.dtype, d.device):
        torch.addmm(dw, d.T, h, out_dtype=dw.dtype, out=dw)
    else:
        dw.add_(torch.mm(d.T, h, out_dtype=dw.dtype))


def _dweight_by_slabs(dw: Tensor, d: Tensor, h: Tensor, first: bool) -> None:
    count, vocab = d.shape
    step = max(1, min(vocab, SLAB_BYTES // (count * dw.element_size())))
    with _exact_products(d.dtype):
        for a in range(0, vocab, step):
            slab, out = d[:, a : a + step].to(dw.dtype), dw[a : a + step]
            torch.mm(slab.T, h, out=out) if first else out.addmm_(slab.T, h)


def _wide_slabs(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (a, b, weight[a:b] in dtype), one buffer for all."""
    vocab, step = len(weight), slab_rows(weight, dtype)
    buffer = torch.empty(step, weight.shape[1], dtype=dtype, device=weight.device)
    for a in range(0, vocab, step):
        b = min(a + step, vocab)
        yield a, b, buffer[: b - a].copy_(weight[a:b])


@contextlib.contextmanager
def _exact_products(stored: torch.dtype) -> Iterator[None]:
    """fp32 products of values that are `stored` exactly: with bf16's own units where there are any.

    The switch is the process's: an fp32 product that another thread starts meanwhile is rounded to bf16 as well.
    """
    if stored != torch.bfloat16 or not cpu_multiplies_bf16():
        yield
        return
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has units for bf16 products (AMX, AVX512-BF16) and this torch can be told to use them."""
    has = torch.backends.mkldnn.is_available() and hasattr(torch.backends.mkldnn, "matmul")
    probes = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
    return has and any(probe is not None and probe() for probe in probes)


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
