"""Out-of-bounds accesses that the interpreter would not notice: every buffer lies against a page without access.

python guard.py shipped | overrun | underrun        returns 0, or dies of SIGSEGV
"""

import ctypes
import itertools
import mmap
import sys

import interpreter
import torch
import triton
import triton.language as tl
from torch import Tensor
from wavalign_kernels.row_kernel import step
from wavalign_kernels.rows import LossRows, Rows, RowStats, Slopes

PAGE, NO_ACCESS = mmap.PAGESIZE, 0
READ_WRITE, PRIVATE = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(tensor: Tensor, front: bool = False) -> Tensor:
    """A copy whose last byte (or first, with `front`) touches a page that cannot be accessed; never unmapped."""
    size = tensor.numel() * tensor.element_size()
    body = -(-size // PAGE) * PAGE
    base = _libc.mmap(None, body + 2 * PAGE, READ_WRITE, PRIVATE, -1, 0)
    assert base and base != ctypes.c_void_p(-1).value
    for page in (base, base + PAGE + body):
        assert _libc.mprotect(page, PAGE, NO_ACCESS) == 0
    start = base + PAGE if front else base + PAGE + body - size
    buffer = (ctypes.c_char * size).from_address(start)
    return torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def shipped() -> None:
    """Every mode of the row step on guarded buffers."""
    for vocab, front in itertools.product((1, 507, 4096, 4097), (False, True)):
        for mode, dtype in itertools.product(("statistics", "loss", "slopes"), (torch.float32, torch.bfloat16)):
            _one(vocab, front, mode, dtype)


def _one(vocab: int, front: bool, mode: str, dtype: torch.dtype) -> None:
    count = 2

    def column(like: Tensor | None = None) -> Tensor:
        return guarded(torch.rand(count) if like is None else like, front)

    z = guarded(torch.randn(count, vocab), front)
    d = z if dtype == z.dtype else guarded(torch.zeros(count, vocab, dtype=dtype), front)
    rows = Rows(column(torch.arange(count)), column(torch.tensor([0, vocab - 1])), column())
    stats = RowStats(column(), column(), column(), column())
    loss = LossRows(
        column(torch.tensor([True, False])), *(column() for _ in range(6)), column(), clip_low=0.2, clip_high=0.2
    )
    step(
        z,
        None if mode == "statistics" else d,
        rows,
        guarded(torch.randn(vocab), front),
        stats,
        slopes=Slopes(column(), column()) if mode == "slopes" else None,
        loss=loss if mode == "loss" else None,
    )


@triton.jit
def _unmasked(x_ptr, first, BLOCK: tl.constexpr):
    at = x_ptr + first + tl.arange(0, BLOCK)
    tl.store(at, tl.load(at) + 1.0)


def overrun() -> None:
    """One element too many."""
    _unmasked[(1,)](guarded(torch.zeros(127)), 0, 128)


def underrun() -> None:
    """One element too early."""
    _unmasked[(1,)](guarded(torch.zeros(127), front=True), -1, 64)


if __name__ == "__main__":
    interpreter.mend()
    {"shipped": shipped, "overrun": overrun, "underrun": underrun}[sys.argv[1]]()
