"""Rows that break softmaxes: very negative, confident, not a number, far away in memory; and the mended interpreter."""

import mmap

import interpreter
import pytest
import torch
import triton
import triton.language as tl
from definition import dlogits, error, plain, softmax
from place import DEVICE, INTERPRETED, SLACK, marks, only_interpreted, put
from row_cases import TOLERANCE, every, mixed, rows_of
from torch import Tensor
from wavalign_kernels.rows import RowGrads, RowStats, gather_loss
from wavalign_kernels.triton_rows import launch_arguments, row_kernel, step

interpreter.mend()

pytestmark = marks()

NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named since Python 3.13


def gaussian(count: int, vocab: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return put(torch.randn(count, vocab, generator=g)), put(torch.randint(0, vocab, (count,), generator=g))


def run(z: Tensor, y: Tensor, b: float | None = 0.5) -> tuple[RowStats, Tensor]:
    """Statistics, and dlogits of an anchor loss with (or without) an entropy slope through both routes."""
    stats = RowStats.empty(len(z), z)
    step(z, None, rows_of(y, None), None, stats)
    d = z.clone()
    ones = put(torch.ones(len(z)))
    step(d, d, rows_of(y, None), None, stats, slopes=RowGrads(-ones, None if b is None else b * ones))
    return stats, d


@pytest.mark.parametrize("level", [-128.0, -1e4, 1e4, -3e38])
@pytest.mark.parametrize("vocab", [123, 4096, 4097])
def test_rows_far_from_zero(vocab: int, level: float) -> None:
    """A maximum that starts at 0 gives +∞ here; one that starts at a finite sentinel fails below it."""
    z, y = gaussian(3, vocab)
    z = z + level
    exact = softmax(z, y)
    logp, entropy = plain(z, y)
    stats, d = run(z.clone(), y)
    x = mixed(y)
    made = z.clone()
    step(made, made, rows_of(y, None), None, RowStats.empty(3, z), loss=gather_loss(x, every(y), z.dtype))
    assert all(bool(t.isfinite().all()) for t in (stats.logp, stats.one_minus_p, stats.lse, stats.entropy, d, made))
    assert error(stats.logp, exact.logp) <= error(logp, exact.logp) + TOLERANCE
    assert error(stats.entropy, exact.entropy) <= error(entropy, exact.entropy) + TOLERANCE
    # The second route knows the row through its lse alone, rounded at the size of the logits.
    rounding = abs(level) * 2.0**-24
    if rounding < 1:
        ones = put(torch.ones(3, dtype=torch.float64))
        assert error(d, dlogits(exact, y, -ones, 0.5 * ones)) <= 2 * rounding + TOLERANCE
    assert made.sum(-1).abs().max() < 1e-5  # a softmax's gradient has no component along (1, …, 1)


@pytest.mark.parametrize("lead", [15.0, 25.0, 60.0])
def test_confident_target(lead: float) -> None:
    """p_y > .999: the gradient at the target is small, and exact to its last digits."""
    z, y = gaussian(4, 507)
    z.scatter_(1, y[:, None], lead)
    exact = softmax(z, y)
    exact_d = dlogits(exact, y, -put(torch.ones(4, dtype=torch.float64)), None).gather(1, y[:, None])
    stats, given = run(z.clone(), y, b=None)
    made = z.clone()
    x = mixed(y, kind=torch.full((4,), 2), weights=torch.ones(4), lam=None, anchor_denominator=1.0)
    step(made, made, rows_of(y, None), None, RowStats.empty(4, z), loss=gather_loss(x, every(y), z.dtype))
    assert bool((exact.one_minus_p < 1e-3).all())
    assert error(stats.one_minus_p, exact.one_minus_p) < 1e-6 * SLACK
    for d in (given, made):
        assert ((d.gather(1, y[:, None]) - exact_d) / exact_d).abs().max() < 1e-6 * SLACK
    if lead >= 25:  # 1 − p in fp32 has lost every digit: the test can tell the difference
        assert error(1 - plain(z, y)[0].exp(), exact.one_minus_p) > 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["target", "first", "last", "middle"])
def test_not_a_number_stays_so(where: str, value: float) -> None:
    for vocab in (507, 4097):
        z, y = gaussian(3, vocab)
        y[:] = 9
        z[1, {"target": 9, "first": 0, "last": vocab - 1, "middle": 250}[where]] = value
        clean_stats, clean_d = run(z[[0, 2]].clone(), y[[0, 2]])
        stats, d = run(z.clone(), y)
        made, again = z.clone(), RowStats.empty(3, z)
        step(made, made, rows_of(y, None), None, again, loss=gather_loss(mixed(y), every(y), z.dtype))
        for s in (stats, again):
            for column in (s.logp, s.one_minus_p, s.entropy):
                assert bool(column[1].isnan())
            assert not bool(s.lse[1].isfinite())
        assert bool(d[1].isnan().all()) and bool(made[1].isnan().all())
        assert torch.equal(d[[0, 2]], clean_d) and torch.equal(stats.logp[[0, 2]], clean_stats.logp)
        assert bool(made[[0, 2]].isfinite().all())


def test_excluded_columns_of_minus_infinity() -> None:
    """A vocabulary padded by −∞ logits is the vocabulary without them: their gradient is 0."""
    z, y = gaussian(3, 4500)
    y %= 4000
    z[:, 4000:], z[:, 100:200] = float("-inf"), float("-inf")
    y[y // 100 == 1] = 0
    exact = softmax(z, y)
    ones = put(torch.ones(3, dtype=torch.float64))
    stats, d = run(z.clone(), y)
    assert error(stats.logp, exact.logp) < TOLERANCE and error(stats.entropy, exact.entropy) < TOLERANCE
    assert bool((d[z == float("-inf")] == 0).all())
    keep = z[0] > float("-inf")
    exact_d = dlogits(softmax(z[:, keep], exact_y := keep.cumsum(0)[y] - 1), exact_y, -ones, 0.5 * ones)
    assert error(d[:, keep], exact_d) < 1e-6 * SLACK


def test_offsets_beyond_32_bits() -> None:
    """Row 12 800 at V = 168 072 starts at element 2 151 321 600 > 2³¹.

    Interpreted, it is the only program, and pages that nobody touches cost no memory; compiled, every row runs.
    """
    vocab, row = 168072, 12800
    size = (row + 1) * vocab * 4
    if INTERPRETED:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        z = torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=torch.float32).view(row + 1, vocab)
    elif torch.cuda.mem_get_info()[0] < 1.2 * size:
        pytest.skip(f"needs {1.2 * size / 2**30:.0f} GiB of the accelerator's memory")
    else:
        z = torch.zeros(row + 1, vocab, device=DEVICE)
    own, y = gaussian(1, vocab)
    z[row] = own[0]
    targets = put(torch.zeros(row + 1, dtype=torch.long))
    targets[row] = y[0]
    stats = RowStats(*(put(torch.zeros(row + 1)) for _ in range(4)))
    x = gather_loss(mixed(targets), every(targets), z.dtype)
    with interpreter.programs([row]):
        arguments = launch_arguments(z, z, rows_of(targets, None), None, stats, slopes=None, loss=x, entropy=True)
        row_kernel[(1 if INTERPRETED else row + 1,)](**arguments)
    exact = softmax(own, y)
    assert error(stats.logp[row:], exact.logp) < TOLERANCE and bool(stats.logp[:row].any()) is not INTERPRETED
    alone, one = own.clone(), RowStats.empty(1, own)
    step(alone, alone, rows_of(y, None), None, one, loss=x.part(row, row + 1))
    assert torch.equal(z[row], alone[0])


@triton.jit
def _bf16_kernel(x_ptr, y_ptr, product_ptr, rounded_ptr, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    x, y = tl.load(x_ptr + i * N + j), tl.load(y_ptr + i * N + j)
    product = tl.dot(x, y)
    tl.store(product_ptr + i * N + j, product)
    tl.store(rounded_ptr + i * N + j, product.to(tl.bfloat16))


@only_interpreted
def test_mended_interpreter_multiplies_and_rounds_bf16() -> None:
    x, y = (torch.randn(16, 16, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (0, 1))
    product, rounded = torch.empty(16, 16), torch.empty(16, 16, dtype=torch.bfloat16)
    _bf16_kernel[(1,)](x, y, product, rounded, 16)
    assert error(product, x.double() @ y.double()) < 1e-6
    assert torch.equal(rounded, product.bfloat16())
