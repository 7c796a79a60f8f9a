"""bf16 on a CPU with AMX: what `amx.c` could do wrong that the tests of every CPU's path would not see."""

import signal

import pytest
import torch
from c_compiler import can_run
from wavalign_kernels import ANCHOR, PREFERENCE, LossInputs, amx, linear_logprob, wavalign_loss

pytestmark = pytest.mark.skipif(
    not can_run(amx.UNITS, amx.OPTIONS), reason="needs a CPU with AMX and a cc that knows it"
)


def softmax(h, w, y, bias=None, tau=1.0):
    """log p_y and entropy in float64."""
    z = h.double() @ w.double().T
    z = (z if bias is None else z + bias.double()) / tau
    logq = z - torch.logsumexp(z, 1, keepdim=True)
    return logq[torch.arange(len(z)), y], -(logq.exp() * logq).sum(1)


def assert_as_defined(h, w, y, coefficients=(1.0, 0.0), tolerance=4e-3, **options):
    """Values to fp32's rounding, gradients to bf16's; coefficients: of Σ logp and Σ entropy."""
    outcomes = []
    for dtype in (torch.bfloat16, torch.float64):
        hidden, weight = h.to(dtype, copy=True).requires_grad_(), w.to(dtype, copy=True).requires_grad_()
        if dtype == torch.float64:
            logp, entropy = softmax(hidden, weight, y, options.get("bias"), options.get("temperature", 1.0))
        else:
            logp, entropy = linear_logprob(hidden, weight, y, impl="torch", **options)
        (coefficients[0] * logp.sum() + coefficients[1] * entropy.sum()).backward()
        outcomes.append([t.detach().double() for t in (logp, entropy, hidden.grad, weight.grad)])
    ours, truth = outcomes
    for o, t in zip(ours[:2], truth[:2], strict=True):
        torch.testing.assert_close(o, t, rtol=2e-6, atol=2e-5)
    for o, t in zip(ours[2:], truth[2:], strict=True):
        assert (o - t).norm() <= tolerance * t.norm()


def test_this_cpu_uses_it():
    assert amx.library() is not None
    assert amx.multiplies(torch.zeros(1, 64).bfloat16(), torch.zeros(40, 64).bfloat16())
    assert not amx.multiplies(torch.zeros(1, 48).bfloat16(), torch.zeros(40, 48).bfloat16())  # no whole tiles
    assert not amx.multiplies(torch.zeros(1, 64).bfloat16(), torch.zeros(31, 64).bfloat16())


@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
@pytest.mark.parametrize(
    "rows, width, vocab", [(1, 32, 32), (31, 96, 33), (33, 64, 63), (70, 32, 1031), (64, 64, 2080)]
)
@pytest.mark.parametrize("coefficients", [(1.0, 0.0), (0.3, -1.0)])
@pytest.mark.usefixtures("threads")
def test_sizes(rows, width, vocab, coefficients):
    """Blocks that are not whole, fewer blocks than threads, a last block that overlaps the one before."""
    h, w = torch.randn(rows, width).bfloat16(), (torch.randn(vocab, width) * 0.3).bfloat16()
    y = torch.randint(vocab, (rows,))
    y[0] = vocab - 1
    assert_as_defined(h, w, y, coefficients, bias=torch.randn(vocab).bfloat16(), temperature=0.8)


@pytest.mark.parametrize("term", ["loss", "log-probs"])
@pytest.mark.parametrize("gap", [15.0, 30.0, 300.0, 3000.0])
def test_targets_far_below_the_maximum(gap, term):
    """The exponentials are relative to the target's logit, and must not leave fp32's range."""
    h, w = torch.randn(40, 64).bfloat16(), torch.randn(507, 64).bfloat16()
    z = h.double() @ w.double().T
    w = (w.double() * gap / (z.amax(1) - z.amin(1)).mean()).bfloat16()
    y = (h.double() @ w.double().T).argmin(1)
    if term == "log-probs":
        return assert_as_defined(h, w, y)
    x = LossInputs(torch.full((40,), ANCHOR), y, torch.rand(40))
    grads = []
    for dtype, impl in ((torch.bfloat16, "torch"), (torch.float64, "reference")):
        hidden, weight = h.to(dtype, copy=True).requires_grad_(), w.to(dtype, copy=True).requires_grad_()
        out = wavalign_loss(hidden, weight, x, impl=impl)
        out.loss.backward()
        grads.append([out.loss.detach().double(), hidden.grad.double(), weight.grad.double()])
    for ours, truth in zip(*grads, strict=True):
        assert (ours - truth).norm() <= 4e-3 * truth.norm()


def test_large_logits():
    """Around 30000, where a bf16 logit is one of 128 apart: r must be the target's, not somebody's far above."""
    h, w = torch.randn(64, 64).bfloat16() * 300, torch.randn(507, 64).bfloat16()
    w[:, 0] = torch.linspace(1.0, 1.02, 507).bfloat16()
    for sign in (1.0, -1.0):
        h[:, 0] = sign * 30_000
        z = h.double() @ w.double().T
        y = z.argmax(1)
        logp, entropy = linear_logprob(h, w, y, impl="torch")
        truth = softmax(h, w, y)
        torch.testing.assert_close(logp.double(), truth[0], rtol=1e-2, atol=2e-2)
        torch.testing.assert_close(entropy.double(), truth[1], rtol=1e-2, atol=5e-2)


def test_many_entries_add_up():
    """Sums over 60,000 entries: block by block in fp32, their sums in fp64."""
    h, w = torch.randn(64, 32).bfloat16(), (torch.randn(60_001, 32) * 0.1).bfloat16()
    y = torch.randint(60_001, (64,))
    logp, entropy = linear_logprob(h, w, y, impl="torch")
    truth = softmax(h, w, y)
    assert (logp - truth[0]).abs().max() < 2e-6 and entropy is not None and (entropy - truth[1]).abs().max() < 3e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_never_silent(value):
    h, w = torch.randn(40, 64).bfloat16(), torch.randn(507, 64).bfloat16()
    h[7, 3] = value
    x = LossInputs(torch.full((40,), PREFERENCE), torch.randint(507, (40,)), torch.ones(40), advantages=torch.ones(40))
    out = wavalign_loss(h.requires_grad_(), w.requires_grad_(), x, impl="torch")
    out.loss.backward()
    assert torch.isnan(out.loss) and torch.isnan(out.logp).nonzero().flatten().tolist() == [7]
    assert torch.isnan(w.grad).any() and torch.isnan(h.grad).any(1).nonzero().flatten().tolist() == [7]
    w.data[9, 3], h.data[7, 3] = torch.nan, 0.0  # one entry of every row, no target's
    assert torch.isnan(linear_logprob(h, w, torch.full((40,), 5), impl="torch")[0]).all()


def test_rows_that_fill_a_block_have_no_share():
    """33 rows take two blocks; at what fills the second the bias alone is exp(200)."""
    h, w, bias = torch.randn(33, 64).bfloat16(), torch.randn(507, 64).bfloat16(), torch.zeros(507).bfloat16()
    bias[5] = 200.0
    h, w, y = h.requires_grad_(), w.requires_grad_(), torch.full((33,), 5)
    wavalign_loss(
        h, w, LossInputs(torch.full((33,), ANCHOR), y, torch.ones(33)), bias=bias, impl="torch"
    ).loss.backward()
    linear_logprob(h, w, y, bias=bias, impl="torch")[0].sum().backward()
    assert torch.isfinite(w.grad).all()


GUARDED = """
import torch
from pages import guarded
from wavalign_kernels import amx
from wavalign_kernels.rows import Rows, RowStats, RowGrads

rows, width = 32, 64
for front in (False, True):
    for vocab in (32, 33, 100):
        def put(*shape):
            return guarded(torch.randn(*shape), front)
        h, w = (guarded(torch.randn(n, width).bfloat16(), front) for n in (rows, vocab))
        out = guarded(torch.zeros(vocab + EXTRA, rows).bfloat16(), front)
        y = Rows(guarded(torch.arange(rows), front), guarded(torch.arange(rows), front), put(rows))
        stats = RowStats(*(put(rows) for _ in range(4)))
        head = amx._Head.of(h, w, y, put(vocab))
        head.statistics(stats, out)
        head.gradient(stats, RowGrads(put(rows), put(rows)), out)
        for dtype in (torch.bfloat16, torch.float32):
            amx.dweight_into(guarded(torch.zeros(vocab, width).to(dtype), front), out.T, h, True)
"""


@pytest.mark.parametrize("extra", [0, -1])
def test_no_access_outside_the_buffers(extra, child):
    """A child with every buffer against a page without access; with a row too few it must die."""
    done = child(GUARDED.replace("EXTRA", str(extra)))
    assert done.returncode == (0 if extra == 0 else -signal.SIGSEGV), done.stderr.decode()
