"""Triton's interpreter, mended and steered. Where kernels are compiled (see `place`), neither does anything.

Mended, for triton 3.6: fp32 → bf16 truncates instead of rounding to nearest even, and a dot of bf16 multiplies the
bit patterns that stand for the numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from place import INTERPRETED
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast, _dot, _round, _place = (
    getattr(InterpreterBuilder, name) for name in ("cast_impl", "create_dot", "create_fp_to_fp", "set_grid_idx")
)
BF16, FP32 = tl.bfloat16, tl.float32


def _widened(handle: TensorHandle) -> TensorHandle:
    """bf16 bit patterns -> fp32 numbers; anything else unchanged."""
    if handle.dtype.scalar != BF16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), FP32)


def _narrowed(handle: TensorHandle) -> TensorHandle:
    """fp32 numbers -> bf16 bit patterns, rounded by PyTorch."""
    numbers = torch.from_numpy(np.array(handle.data, dtype=np.float32))
    return TensorHandle(numbers.bfloat16().view(torch.int16).numpy().view(np.uint16), BF16)


def cast_impl(self, src, dst_type):
    pair = (src.dtype.scalar, dst_type.scalar)
    if pair == (BF16, FP32):
        return _widened(src)
    return _narrowed(src) if pair == (FP32, BF16) else _cast(self, src, dst_type)


def create_fp_to_fp(self, src, dst_type, rounding_mode):
    if {src.dtype.scalar, dst_type.scalar} == {BF16, FP32}:
        return cast_impl(self, src, dst_type)
    return _round(self, src, dst_type, rounding_mode)


def create_dot(self, a, b, d, *options):
    return _dot(self, _widened(a), _widened(b), d, *options)


def mend() -> None:
    if not INTERPRETED:
        return
    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp
    InterpreterBuilder.create_dot = create_dot


@contextmanager
def programs(order: Sequence[int]) -> Iterator[None]:
    """The i-th program of a one-dimensional grid runs as program order[i]."""
    if not INTERPRETED:  # an accelerator has an order of its own, another one each time
        yield
        return

    def place(self, x, y, z):
        self.grid_idx = (order[x], y, z)

    with mock.patch.object(InterpreterBuilder, "set_grid_idx", place):
        yield
