"""Out-of-bounds accesses that the interpreter would not notice: every buffer lies against a page without access.

python guard.py shipped | overrun | underrun        returns 0, or dies of SIGSEGV
"""

import itertools
import sys

import interpreter
import torch
import triton
import triton.language as tl
from pages import guarded
from torch import Tensor
from wavalign_kernels.rows import LossRows, RowGrads, Rows, RowStats
from wavalign_kernels.triton_rows import step


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
        column(torch.tensor([True, False])),
        *(column() for _ in range(6)),
        column(),
        clip_low=0.2,
        clip_high=0.2,
        clip_c=3.0,
    )
    step(
        z,
        None if mode == "statistics" else d,
        rows,
        guarded(torch.randn(vocab), front),
        stats,
        slopes=RowGrads(column(), column()) if mode == "slopes" else None,
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
