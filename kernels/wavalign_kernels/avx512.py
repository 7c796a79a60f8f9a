"""The passes of `torch_rows` over fp32 logits on a CPU with AVX-512: `avx512.c`, two passes for PyTorch's six."""

import ctypes
import functools

import torch
from torch import Tensor

from .native import Struct, load, run_spans, struct

UNITS = {"avx512f"}
OPTIONS = ["-mavx512f"]
SHARE = 1 << 18
"""Entries that are worth a thread: about a tenth of a millisecond."""

# As in avx512.c.
_Statistics = struct("Statistics", "x target top own others energy", "vocab keep_exp")
_Gradient = struct("Gradient", "x offset entropy a b", "vocab")


def takes(z: Tensor) -> bool:
    """Whether the passes can take these; the first time this is asked, `avx512.c` is built."""
    return z.dtype == torch.float32 and z.device.type == "cpu" and z.is_contiguous() and library() is not None


def softmax(x: Tensor, y: Tensor, entropy: bool, keep_exp: bool) -> tuple[Tensor, ...]:
    """As `torch_rows._softmax`, the entropy's sum included whether asked for or not."""
    assert y.dtype == torch.int64 and y.is_contiguous() and len(y) == len(x)  # C sees a bare pointer
    top, own = x.new_empty(2, len(x))
    others, energy = x.new_empty(2, len(x), dtype=torch.float64)
    _call("statistics", _Statistics(x, y, top, own, others, energy, x.shape[1], keep_exp), x)
    return tuple(c.to(x.dtype)[:, None] for c in (top, own, others, energy))


def gradient(x: Tensor, offset: Tensor, entropy: Tensor, a: Tensor, b: Tensor | None) -> None:
    """As `torch_rows._gradient`."""
    if b is None:
        b = entropy = torch.zeros_like(a)  # the entropy may not be known: 0 · NaN is NaN
        a = b - 1.0
    columns = offset, entropy, a, b
    assert all(c.dtype == x.dtype and c.is_contiguous() and len(c) == len(x) for c in columns)
    _call("gradient", _Gradient(x, *columns, x.shape[1]), x)


def _call(name: str, task: Struct, x: Tensor) -> None:
    """A thread for each part of the rows."""
    lib, rows = library(), len(x)
    assert lib is not None
    pieces = max(1, min(rows, torch.get_num_threads(), x.numel() // SHARE))
    edges = [i * rows // pieces for i in range(pieces + 1)]

    def run(first: int, last: int) -> None:
        getattr(lib, name)(ctypes.byref(task), ctypes.c_long(first), ctypes.c_long(last))

    run_spans(run, edges[:-1], edges[1:])


@functools.cache
def library() -> ctypes.CDLL | None:
    """`avx512.c`, or None: see `native.load`."""
    return load(
        "avx512.c",
        UNITS,
        OPTIONS,
        without="the softmax over fp32 logits takes PyTorch's six passes, not two",
        needs="a C compiler that knows AVX-512 (gcc 5, clang 4)",
    )
