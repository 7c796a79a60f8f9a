"""The three matrix products, accumulated and returned in fp32 (fp64 for fp64) whatever the storage dtype.

bf16 on an accelerator multiplies as bf16 and returns fp32 (torch.mm's out_dtype). Everything else in half precision is
widened slab by slab: CPUs return bf16 products in bf16, and fp16 has not the range for dlogits.
"""

import functools

import torch
from torch import Tensor

SLAB_BYTES = 16 << 20


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of logits, statistics and accumulators."""
    return torch.promote_types(dtype, torch.float32)


def operand_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Dtype in which hidden and dlogits enter the products."""
    return dtype if dtype == torch.bfloat16 and device.type == "cuda" else wide_dtype(dtype)


def logits_into(z: Tensor, h: Tensor, weight: Tensor) -> None:
    """z = h @ weight.T  # (C, V), (C, H), (V, H)"""
    if h.dtype == weight.dtype == z.dtype:
        torch.mm(h, weight.T, out=z)
    elif h.dtype == weight.dtype:
        torch.mm(h, weight.T, out_dtype=z.dtype, out=z)
    else:
        for a, b, slab in _wide_slabs(weight, z.dtype):
            torch.mm(h, slab.T, out=z[:, a:b])


def dhidden(d: Tensor, weight: Tensor) -> Tensor:
    """d @ weight  # (C, V), (V, H) -> (C, H) wide"""
    wide = wide_dtype(d.dtype)
    if d.dtype == weight.dtype == wide:
        return torch.mm(d, weight)
    if d.dtype == weight.dtype:
        return torch.mm(d, weight, out_dtype=wide)
    out = d.new_zeros(d.shape[0], weight.shape[1])
    for a, b, slab in _wide_slabs(weight, d.dtype):
        out.addmm_(d[:, a:b], slab)
    return out


def dweight_into(dw: Tensor, d: Tensor, h: Tensor, first: bool) -> None:
    """dw = d.T @ h on the first chunk, dw += d.T @ h after it.  # (V, H) wide, (C, V), (C, H)"""
    if d.dtype == dw.dtype:
        torch.mm(d.T, h, out=dw) if first else dw.addmm_(d.T, h)
    elif first:
        torch.mm(d.T, h, out_dtype=dw.dtype, out=dw)
    elif _accumulates_wide(d.dtype, d.device):
        torch.addmm(dw, d.T, h, out_dtype=dw.dtype, out=dw)
    else:
        dw.add_(torch.mm(d.T, h, out_dtype=dw.dtype))


def _wide_slabs(weight: Tensor, dtype: torch.dtype):
    """Yield (a, b, weight[a:b] in dtype), one buffer for all."""
    vocab, width = weight.shape
    step = max(1, min(vocab, SLAB_BYTES // (width * dtype.itemsize)))
    buffer = torch.empty(step, width, dtype=dtype, device=weight.device)
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
