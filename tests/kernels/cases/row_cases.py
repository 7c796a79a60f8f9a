"""The row step against the definition: error ≤ that of PyTorch in the same dtype + TOLERANCE (relative, 2-norm)."""

import interpreter
import pytest
import torch
from definition import dlogits, error, loss, plain, slopes, softmax
from place import DEVICE, SLACK, marks, put
from torch import Tensor
from wavalign_kernels import ANCHOR, PREFERENCE, LossInputs
from wavalign_kernels.rows import RowGrads, Rows, RowStats, gather_loss, gather_rows
from wavalign_kernels.triton_rows import step

interpreter.mend()

pytestmark = marks()

TOLERANCE = 3e-7 * SLACK  # about two units of fp32: the order of summation differs
VOCABS = [1, 123, 252, 507, 4096, 4097, 8200]  # one block: below, exactly; several: by one column, by many
COUNT = 6


def logits_like(vocab: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z (A, V), targets (A,), bias (V,), temperature (A,)"""
    g = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(COUNT, vocab, generator=g)
    targets = torch.randint(0, vocab, (COUNT,), generator=g)
    targets[0], targets[1] = 0, vocab - 1
    made = z, targets, torch.randn(vocab, generator=g), 0.5 + torch.rand(COUNT, generator=g)
    return tuple(put(t) for t in made)  # type: ignore


def rows_of(targets: Tensor, tau: Tensor | None) -> Rows:
    return gather_rows(every(targets), targets, 1.0 if tau is None else tau, torch.float32)


def every(column: Tensor) -> Tensor:
    """The index of all rows."""
    return torch.arange(len(column), device=DEVICE)


def mixed(targets: Tensor, tau: Tensor | float = 1.0, **changes) -> LossInputs:
    """Preference and anchor rows in turn, ratios on both sides of the clip, a KL term on some rows."""
    g = torch.Generator().manual_seed(1)
    count = len(targets)
    columns = dict(
        kind=torch.tensor([PREFERENCE, ANCHOR] * count)[:count],
        weights=torch.rand(count, generator=g),
        advantages=torch.randn(count, generator=g),
        old_logp=-8 + torch.randn(count, generator=g),
        ref_logp=-8 + torch.randn(count, generator=g),
        kl_weights=torch.rand(count, generator=g) * (torch.arange(count) % 3 > 0),
        entropy_coef=0.1,
        clip_c=1.3,
        lam=0.3,
        preference_denominator=7.0,
        anchor_denominator=3.0,
    )
    return put(LossInputs(targets=targets, temperature=tau, **{**columns, **changes}))


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "bias+temperature"])
@pytest.mark.parametrize("vocab", VOCABS)
def test_statistics(vocab: int, bare: bool, entropy: bool) -> None:
    z, y, bias, tau = logits_like(vocab)
    bias, tau = (None, None) if bare else (bias, tau)
    stats = RowStats(*(put(torch.full((COUNT,), 77.0)) for _ in range(4)))
    before = z.clone()
    step(z, None, rows_of(y, tau), bias, stats, entropy=entropy)
    assert torch.equal(z, before)
    exact = softmax(z, y, bias, 1.0 if tau is None else tau)
    logp, ent = plain(z, y, bias, 1.0 if tau is None else tau)
    assert error(stats.logp, exact.logp) <= error(logp, exact.logp) + TOLERANCE
    assert error(stats.one_minus_p, exact.one_minus_p) <= error(1 - logp.exp(), exact.one_minus_p) + TOLERANCE
    assert error(stats.lse, exact.lse) <= TOLERANCE
    if entropy:
        assert error(stats.entropy, exact.entropy) <= error(ent, exact.entropy) + TOLERANCE
    else:
        assert bool((stats.entropy == 77).all()), "entropy was not asked for"


LOSSES = {
    "all terms": {},
    "no entropy": dict(entropy_coef=0.0),
    "no kl": dict(ref_logp=None, kl_weights=None),
    "on policy": dict(old_logp=None),
    "own entropy weights": dict(entropy_weights=torch.linspace(0, 1, COUNT)),
    "anchors alone": dict(
        kind=torch.full((COUNT,), ANCHOR), advantages=None, old_logp=None, ref_logp=None, kl_weights=None, lam=None
    ),
    "preferences alone": dict(kind=torch.full((COUNT,), PREFERENCE), lam=None),
}


def check_loss(vocab: int, dtype: torch.dtype, change: dict) -> None:
    z, y, bias, tau = logits_like(vocab)
    # Close to the log-prob of a random target at every size, so that ratios fall inside and outside the clip.
    near = plain(z, y, bias, tau)[0]
    shift = put(torch.tensor([0.0, 0.3, -0.3, 0.1, -0.05, 1.0])[:COUNT])
    x = mixed(y, tau, **{"old_logp": near + shift, "ref_logp": near - shift, **change})
    leaf = z.clone().requires_grad_()
    (torch_d,) = torch.autograd.grad(loss(*plain(leaf, y, bias, tau), x), leaf)
    exact = softmax(z, y, bias, tau)
    exact_d = dlogits(exact, y, *slopes(exact, x), tau)
    d = z if dtype == z.dtype else torch.full_like(z, 77.0, dtype=dtype)
    before, stats = z.clone(), RowStats.empty(COUNT, z)
    step(z, d, rows_of(y, tau), bias, stats, loss=gather_loss(x, every(y), torch.float32))
    assert d is z or torch.equal(z, before)
    assert error(stats.logp, exact.logp) <= error(near, exact.logp) + TOLERANCE
    if vocab > 1:
        assert error(d, exact_d) <= error(torch_d.to(dtype), exact_d) + TOLERANCE
    else:
        assert d.double().abs().max() <= torch_d.abs().max() + TOLERANCE  # p = 1: the gradient is 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", VOCABS)
def test_loss(vocab: int, dtype: torch.dtype) -> None:
    check_loss(vocab, dtype, {})


@pytest.mark.parametrize("change", LOSSES.values(), ids=LOSSES)
def test_terms_of_the_loss(change: dict) -> None:
    check_loss(507, torch.float32, change)


@pytest.mark.parametrize("shift", [1e-5, 1e-3, 0.4999, 0.5001, 3.0])
def test_small_kl_gap(shift: float) -> None:
    """exp(gap) − 1 must not cancel: the slope of k3 near the reference is the gap itself."""
    z, y, _, _ = logits_like(252)
    s = softmax(z, y)
    stats = RowStats.empty(COUNT, z)
    step(z, None, rows_of(y, None), None, stats)
    ref = stats.logp + shift * put(torch.tensor([1.0, -1.0] * COUNT)[:COUNT])
    ones = torch.ones(COUNT)
    kind, none = torch.full((COUNT,), PREFERENCE), torch.zeros(COUNT)
    x = mixed(y, kind=kind, advantages=none, ref_logp=ref, kl_weights=ones, entropy_coef=0.0, lam=None)
    # Taken at the rounded log-prob, whose rounding is the fp32 error of the gap and none of the kernel's.
    gap = ref.double() - stats.logp.double()
    exact = dlogits(s, y, -torch.expm1(gap) / 7.0, None)
    step(z, z, rows_of(y, None), None, stats, loss=gather_loss(x, every(y), torch.float32))
    assert error(z, exact) < 1e-6 * SLACK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("vocab", [1, 507, 4096, 4097])
def test_given_slopes(vocab: int, entropy: bool, dtype: torch.dtype) -> None:
    z, y, bias, tau = logits_like(vocab)
    a, b = put(torch.linspace(-1, 1, COUNT)), put(torch.linspace(2, -1, COUNT)) if entropy else None
    exact = softmax(z, y, bias, tau)
    exact_d = dlogits(exact, y, a.double(), None if b is None else b.double(), tau)
    leaf = z.clone().requires_grad_()
    logp, ent = plain(leaf, y, bias, tau)
    (torch_d,) = torch.autograd.grad((a * logp).sum() + (0.0 if b is None else (b * ent).sum()), leaf)
    stats = RowStats.empty(COUNT, z)
    step(z, None, rows_of(y, tau), bias, stats, entropy=entropy)
    d = z if dtype == z.dtype else torch.empty_like(z, dtype=dtype)
    step(z, d, rows_of(y, tau), bias, stats, slopes=RowGrads(a, b))
    if vocab > 1:
        # The row is known through its lse, which was rounded to fp32: a common factor of p.
        rounding = float(exact.lse.abs().max()) * 2.0**-24
        assert error(d, exact_d) <= error(torch_d.to(dtype), exact_d) + TOLERANCE + rounding
    else:
        assert d.double().abs().max() <= torch_d.abs().max() + TOLERANCE


@pytest.mark.parametrize("mode", ["statistics", "loss", "slopes"])
def test_no_rows(mode: str) -> None:
    z, y = put(torch.empty(0, 507)), put(torch.empty(0, dtype=torch.long))
    none = put(torch.empty(0))
    x = gather_loss(mixed(y), every(y), torch.float32)
    slope = RowGrads(none, None) if mode == "slopes" else None
    step(z, z, rows_of(y, None), None, RowStats.empty(0, z), slopes=slope, loss=x if mode == "loss" else None)


def test_any_order_of_programs_gives_the_same_bits() -> None:
    results = []
    for order in (range(COUNT), reversed(range(COUNT)), [3, 0, 5, 1, 4, 2]):
        z, y, bias, tau = logits_like(4097)
        stats = RowStats.empty(COUNT, z)
        with interpreter.programs(list(order)):
            step(z, z, rows_of(y, tau), bias, stats, loss=gather_loss(mixed(y, tau), every(y), z.dtype))
        results.append((z, stats.logp, stats.one_minus_p, stats.lse, stats.entropy))
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], other, strict=True))
