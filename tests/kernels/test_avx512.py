"""fp32 rows on a CPU with AVX-512: what `avx512.c` could do wrong that the tests of every CPU's path would not see."""

import signal

import pytest
import torch
from c_compiler import can_run
from torch import Tensor
from wavalign_kernels import avx512

pytestmark = pytest.mark.skipif(
    not can_run(avx512.UNITS, avx512.OPTIONS), reason="needs AVX-512 and a cc that knows it"
)


@pytest.fixture(autouse=True)
def small_work_is_worth_threads(monkeypatch):
    monkeypatch.setattr(avx512, "SHARE", 1)


def sums(x: Tensor, y: Tensor) -> list[Tensor]:
    """max x, x_y − max, Σ_{j≠y} e_j and Σ_{j≠y} e_j (x_j − max), and e with 0 at the target, in float64."""
    top = x.double().amax(1, keepdim=True)
    shifted = x.double() - top
    e = shifted.exp().scatter(1, y, 0.0)
    weighted = torch.where(e > 0, e * shifted, 0.0)
    return [top, shifted.gather(1, y), e.sum(1, keepdim=True), weighted.sum(1, keepdim=True), e]


def test_this_cpu_uses_it():
    assert avx512.library() is not None
    assert avx512.takes(torch.zeros(2, 4))
    assert not avx512.takes(torch.zeros(2, 4).double()) and not avx512.takes(torch.zeros(4, 2).T)


@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
@pytest.mark.parametrize("rows", [1, 4, 37])
@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 511, 512, 513, 1031])
@pytest.mark.usefixtures("threads")
def test_sizes(rows, vocab):
    """Vectors and pieces that are not whole, fewer rows than threads, targets at both ends."""
    x, y = torch.randn(rows, vocab) * 4, torch.randint(vocab, (rows, 1))
    y[0], y[-1] = 0, vocab - 1
    *truth, e = sums(x, y)
    for keep_exp, left in ((True, e), (False, x.double() - truth[0])):
        z = x.clone()
        answers = avx512.softmax(z, y, True, keep_exp)
        for ours, true in zip((*answers, z), (*truth, left), strict=True):
            torch.testing.assert_close(ours.double(), true, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("threads", [1, 3], indirect=True)
@pytest.mark.parametrize("vocab", [1, 17, 1031])
@pytest.mark.parametrize("with_entropy", [True, False])
@pytest.mark.usefixtures("threads")
def test_gradient(vocab, with_entropy):
    x = torch.randn(37, vocab) * 4
    lse = x.double().logsumexp(1, keepdim=True)
    logp = x.double() - lse
    a, b, entropy = torch.randn(3, 37, 1)
    truth = -logp.exp() * (a + b * (logp + entropy)) if with_entropy else logp.exp()
    if not with_entropy:
        b, entropy = None, torch.full((37, 1), torch.nan)
    avx512.gradient(x, lse.float(), entropy, a, b)
    torch.testing.assert_close(x.double(), truth, rtol=2e-5, atol=2e-6)


def test_many_entries_add_up():
    """168072 entries: pieces in fp32, their sums in fp64."""
    x, y = torch.randn(8, 168_072), torch.randint(168_072, (8, 1))
    *truth, _ = sums(x, y)
    for ours, true in zip(avx512.softmax(x, y, True, True), truth, strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=2e-7, atol=0)


def test_exponentials_to_the_last_place():
    x = torch.linspace(0.0, -87.0, 100_003)[None]
    y = torch.zeros(1, 1, dtype=torch.long)
    truth = x.double().exp()[:, 1:]
    avx512.softmax(x, y, True, True)
    assert ((x[:, 1:] - truth).abs() / truth).max() < 2e-7


@pytest.mark.parametrize("first", [0, 1])
def test_impossible_entries(first):
    """−∞ has no share, wherever it stands."""
    x, y = torch.randn(8, 507), torch.full((8, 1), 1 - first)
    x[:, first::2] = -torch.inf
    x[:, 5 - first] = torch.finfo(torch.float32).min
    *truth, e = sums(x, y)
    for ours, true in zip((*avx512.softmax(x, y, True, True), x), (*truth, e), strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=2e-6, atol=2e-6)
    logp = torch.full((1, 20), -torch.inf)
    one = torch.ones(1, 1)
    avx512.gradient(logp, one, one, one, one)
    assert torch.count_nonzero(logp) == 0


def test_what_is_too_small_counts_as_nothing():
    x, y = torch.tensor([[0.0, -86.9, -87.1, -200.0]]), torch.zeros(1, 1, dtype=torch.long)
    left = x.clone()
    avx512.softmax(x, y, True, True)
    assert (x > 0).tolist() == [[False, True, False, False]]
    avx512.gradient(left, *torch.zeros(2, 1, 1), torch.ones(1, 1), torch.zeros(1, 1))
    assert (left < 0).tolist() == [[True, True, False, False]]


def test_bare_pointers_are_checked():
    x, y, one = torch.randn(4, 16), torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1)
    with pytest.raises(AssertionError):
        avx512.softmax(x, y.int(), True, True)
    for wrong in (one.double(), one[:3], torch.ones(4, 2)[:, :1]):
        with pytest.raises(AssertionError):
            avx512.gradient(x, one, one, one, wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 16, 100, 506])
@pytest.mark.parametrize("target", [0, 100, 300])
def test_nan_is_never_lost(value, place, target):
    """Vector maxima forget NaN; sums do not."""
    x, y = torch.randn(5, 507), torch.full((5, 1), target)
    x[2, place] = value
    _, own, others, _ = avx512.softmax(x, y, True, True)
    assert torch.isnan(others + own.exp())[:, 0].nonzero()[:, 0].tolist() == [2]
    logp = torch.zeros(5, 507)
    logp[2, place] = torch.nan
    avx512.gradient(logp, *torch.ones(4, 5, 1))
    assert torch.isnan(logp).nonzero().tolist() == [[2, place]]


GUARDED = """
import torch
from pages import guarded
from wavalign_kernels import avx512

for front in (False, True):
    for vocab in (1, 16, 33, 100):
        x = guarded(torch.randn(7, vocab), front)
        y = guarded(torch.randint(vocab, (7, 1)), front)
        avx512.softmax(x, y, True, False)
        avx512.gradient(x, *(guarded(torch.randn(7, 1), front) for _ in range(4)))
        avx512._call("statistics", avx512._Statistics(
            x, y, *(guarded(torch.zeros(7).to(kind), front) for kind in (torch.float32,) * 2 + (torch.float64,) * 2),
            vocab, 1), x.new_empty(7 + EXTRA, 0))
"""


@pytest.mark.parametrize("extra", [0, 1])
def test_no_access_outside_the_buffers(extra, child):
    """A child with every buffer against a page without access; with a row too many it must die."""
    done = child(GUARDED.replace("EXTRA", str(extra)))
    assert done.returncode == (0 if extra == 0 else -signal.SIGSEGV), done.stderr.decode()
