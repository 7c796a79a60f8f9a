"""The torch path against the definition in float64, written here once more and sharing no code with the package.

Acceptance: the largest error against float64 is at most the error of plain PyTorch in the same dtype, plus a tolerance
for luck in rounding: units in the last place at the largest true value, 1 in half precision and 32 in fp32, for the
loss exponentiates log-probs (`allowed`).
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_streams import make_head, make_inputs
from torch import Tensor
from wavalign_kernels import (
    ANCHOR,
    NONE,
    PREFERENCE,
    LossInputs,
    amx,
    avx512,
    linear_logprob,
    logits_loss,
    matmul,
    wavalign_loss,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(252, 64, 507), (123, 33, 252), (40, 16, 1031)]  # no multiple of a block; the last: more columns than memory
NAMES = ("hidden", "weight", "bias")


GPU = pytest.param(
    "GPU", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator is here")]
)


@pytest.fixture(params=["this CPU", "without AMX", "without AVX-512", "without bf16", GPU])
def device(request, monkeypatch) -> torch.device:
    """Every way in which the torch path works, by the device it works on."""
    if request.param in ("without AMX", "without AVX-512", "without bf16"):
        monkeypatch.setattr(amx, "library", lambda: None)
    monkeypatch.setattr(matmul, "multiplies_bf16", lambda: request.param != "without bf16")
    if request.param == "without AVX-512":
        monkeypatch.setattr(avx512, "library", lambda: None)
    return torch.device("cuda" if request.param == "GPU" else "cpu")


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in the operands' dtype, as nn.Linear makes it, then at least fp32."""
    z = hidden @ weight.T
    z = z if bias is None else z + bias
    return z.to(torch.promote_types(z.dtype, torch.float32))


def softmax_stats(z: Tensor, targets: Tensor, tau: Any) -> tuple[Tensor, Tensor]:
    """log p_y and −Σ p log p of softmax(z / τ), row by row."""
    z = z / (tau.to(z.dtype).reshape(-1, 1) if isinstance(tau, Tensor) else tau)
    logq = z - torch.logsumexp(z, 1, keepdim=True)
    return logq[torch.arange(len(z)), targets], -(logq.exp() * logq).sum(1)


def mixed_loss(z: Tensor, x: LossInputs) -> Tensor:
    """λ·Σ preference/D + (1 − λ)·Σ anchor/D, one position after the other."""
    active = [t for t in range(len(z)) if int(x.kind[t]) in (PREFERENCE, ANCHOR)]
    tau = x.temperature[active] if isinstance(x.temperature, Tensor) else x.temperature
    logps, entropies = softmax_stats(z[active], x.targets[active], tau)
    preference = anchor = z.new_zeros(())
    for t, logp, entropy in zip(active, logps, entropies, strict=True):
        w = float(x.weights[t])
        if int(x.kind[t]) == ANCHOR:
            anchor = anchor - w * logp
            continue
        assert x.advantages is not None
        a = float(x.advantages[t])
        ratio = torch.exp(logp - (logp.detach() if x.old_logp is None else float(x.old_logp[t])))
        worst = min(ratio * a, torch.clip(ratio, 1 - x.clip_low, 1 + x.clip_high) * a, key=float)
        preference = preference - w * (max(worst, 0 * ratio + x.clip_c * a, key=float) if a < 0 else worst)
        if x.ref_logp is not None and x.kl_weights is not None:
            gap = float(x.ref_logp[t]) - logp
            preference = preference + float(x.kl_weights[t]) * (gap.exp() - gap - 1)
        share = w if x.entropy_weights is None else float(x.entropy_weights[t])
        preference = preference - x.entropy_coef * share * entropy
    preference, anchor = preference / x.preference_denominator, anchor / x.anchor_denominator
    return preference + anchor if x.lam is None else x.lam * preference + (1 - x.lam) * anchor


def widen(tensors: list) -> list:
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def grads(loss: Tensor, tensors: list) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [t for t in tensors if t is not None]))


def allowed(plain: Tensor, truth: Tensor) -> float:
    units = 32 if plain.dtype == torch.float32 else 1
    error = (plain.detach().double() - truth).abs().max()
    return float(error + units * torch.finfo(plain.dtype).eps * truth.detach().abs().max())


def assert_as_good(ours: list[Tensor], plain: list[Tensor], truth: list[Tensor]) -> None:
    for name, o, p, t in zip(("value", "second value", *NAMES), ours, plain, truth, strict=False):
        assert o.dtype == p.dtype and o.shape == p.shape
        error = float((o.detach().double() - t).abs().max())
        assert error <= allowed(p, t), f"{name}: error {error:.3e}, allowed {allowed(p, t):.3e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk_rows", [None, 50])
def test_log_probs_and_their_gradients(dtype, shape, chunk_rows, device):
    rows, _, vocab = shape
    head = make_head(*shape, dtype=dtype, device=device)
    targets, tau = torch.randint(vocab, (rows,)).to(device), (0.5 + torch.rand(rows)).to(device)
    g = torch.randn(2, rows).to(device)

    def outcome(tensors, function):
        logp, entropy = function(*tensors)
        return [logp, entropy, *grads((logp * g[0] + entropy * g[1]).sum(), tensors)]

    def plain(h, w, b):
        return softmax_stats(logits_of(h, w, b), targets, tau)

    def fused(h, w, b):
        return linear_logprob(h, w, targets, bias=b, temperature=tau, impl="torch", chunk_rows=chunk_rows)

    assert_as_good(outcome(head, fused), outcome(head, plain), outcome(widen(head), plain))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", ["everything", "on policy", "no entropy term", "one chunk of five"])
def test_mixed_loss_and_its_gradients(dtype, shape, variant, device):
    rows, _, vocab = shape
    bias = variant == "everything"
    head = make_head(*shape, dtype=dtype, bias=bias, device=device)
    x = make_inputs(rows, vocab, device)
    if variant == "on policy":
        x = replace(x, old_logp=None, ref_logp=None, kl_weights=None, lam=None, temperature=1.0)
    if variant == "no entropy term":
        x = replace(x, entropy_coef=0.0)
    chunk_rows = 5 if variant == "one chunk of five" else None

    def outcome(tensors, loss):
        return [loss, *grads(loss, tensors)]

    def plain(tensors):
        return outcome(tensors, mixed_loss(logits_of(*tensors), x))

    ours = outcome(head, wavalign_loss(head[0], head[1], x, bias=head[2], impl="torch", chunk_rows=chunk_rows).loss)
    assert_as_good(ours, plain(head), plain(widen(head)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_of_logits(dtype, device):
    x = make_inputs(123, 507, device)
    logits = (torch.randn(123, 507) * 3).to(device, dtype).requires_grad_()
    wide = logits.detach().double().requires_grad_()
    ours = logits_loss(logits, x, impl="torch", chunk_rows=20).loss
    wider = logits.to(torch.float32)
    plain, truth = mixed_loss(wider, x), mixed_loss(wide, x)
    assert_as_good([ours, *grads(ours, [logits])], [plain, *grads(plain, [logits])], [truth, *grads(truth, [wide])])
    ours = logits_loss(logits, x, impl="torch").loss
    (gradient,) = grads(ours, [logits])
    assert torch.count_nonzero(gradient[x.kind == NONE]) == 0
    assert torch.count_nonzero(gradient[x.kind == ANCHOR]) > 0


def test_the_gradient_of_log_probs_is_their_derivative():
    h, w, b = make_head(7, 5, 11)
    targets, active = torch.randint(11, (7,)), torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()
    tau = (0.5 + torch.rand(7)).double()

    def function(h, w, b):
        return linear_logprob(h, w, targets, active=active, bias=b, temperature=tau, impl="torch", chunk_rows=2)

    assert torch.autograd.gradcheck(function, (h, w, b))
    assert torch.autograd.gradcheck(lambda *t: function(*t)[1], (h, w, b))  # entropy alone
    assert torch.autograd.gradcheck(lambda *t: linear_logprob(*t, targets, entropy=False, impl="torch")[0], (h, w))


@pytest.mark.parametrize("form", ["hidden", "logits"])
def test_the_gradient_of_the_loss_is_its_derivative(form):
    """By central differences: gradcheck runs backward twice, and these gradients are handed over once.

    old and ref are fixed numbers, so the loss is differentiable but for the clip's corners, which no position is at.
    """
    head = make_head(9, 5, 11)
    x = make_inputs(9, 11, temperature=0.7)
    if form == "logits":
        head = [logits_of(*head).detach().requires_grad_()]

    def loss(*tensors):
        if form == "logits":
            return logits_loss(*tensors, x, impl="torch", chunk_rows=2).loss
        return wavalign_loss(tensors[0], tensors[1], x, bias=tensors[2], impl="torch", chunk_rows=2).loss

    analytic = grads(3 * loss(*head), head)
    for tensor, gradient in zip(head, analytic, strict=True):
        flat, step = tensor.detach().view(-1), 1e-6
        for i in range(len(flat)):
            kept, sides = float(flat[i]), []
            for value in (kept + step, kept - step):
                flat[i] = value
                with torch.no_grad():
                    sides.append(float(loss(*head)))
            flat[i] = kept
            assert float(gradient.reshape(-1)[i]) == pytest.approx(
                3 * (sides[0] - sides[1]) / (2 * step), rel=1e-6, abs=1e-7
            )


def test_gradients_are_handed_over_once():
    head, x = make_head(9, 5, 11), make_inputs(9, 11)
    loss = wavalign_loss(head[0], head[1], x, bias=head[2], impl="torch").loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call wavalign_loss again, or use linear_logprob"):
        loss.backward()


def test_second_derivatives_are_refused():
    h, w, _ = make_head(7, 64, 50, torch.float32)
    logp, _ = linear_logprob(h, w, torch.arange(7), impl="torch")
    (first,) = torch.autograd.grad((logp * torch.ones(7, requires_grad=True)).sum(), h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",), ("hidden", "bias"), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_parts_cost_nothing_and_change_nothing(trained, dtype):
    x = make_inputs(123, 252)
    whole = make_head(123, 64, 252, dtype=dtype)
    part = [t.detach().requires_grad_(name in trained) for t, name in zip(whole, NAMES, strict=True)]
    wanted = wavalign_loss(whole[0], whole[1], x, bias=whole[2], impl="torch", chunk_rows=30)
    wanted.loss.backward()
    got = wavalign_loss(part[0], part[1], x, bias=part[2], impl="torch", chunk_rows=30)
    assert torch.equal(got.loss, wanted.loss) and torch.equal(got.logp, wanted.logp)
    assert got.loss.requires_grad == bool(trained)
    if trained:
        got.loss.backward()
    for ours, full, name in zip(part, whole, NAMES, strict=True):
        assert ours.grad is None if name not in trained else torch.equal(ours.grad, full.grad)
    logp, entropy = linear_logprob(part[0], part[1], x.targets.clamp(0), bias=part[2], impl="torch")
    assert logp.requires_grad == bool(trained)
    if trained:
        (logp.sum() + entropy.sum()).backward()
        assert all((t.grad is None) == (name not in trained) for t, name in zip(part, NAMES, strict=True))


def test_no_grad_gives_the_same_numbers(device):
    x, head = make_inputs(123, 252, device), make_head(123, 33, 252, torch.float32, device=device)
    loud = wavalign_loss(head[0], head[1], x, impl="torch")
    with torch.no_grad():
        quiet = wavalign_loss(head[0], head[1], x, impl="torch")
    assert torch.equal(loud.loss, quiet.loss) and torch.equal(loud.entropy, quiet.entropy)
    assert not quiet.loss.requires_grad


def test_tied_embeddings_gather_both_gradients():
    """One matrix embeds the tokens and reads them out."""
    ids = torch.randint(252, (60,))
    x = make_inputs(60, 252, temperature=1.0)
    shared = [make_head(60, 33, 252)[1].detach().requires_grad_() for _ in range(2)]
    wavalign_loss(shared[0][ids].tanh(), shared[0], x, impl="torch", chunk_rows=7).loss.backward()
    mixed_loss(logits_of(shared[1][ids].tanh(), shared[1], None), x).backward()
    torch.testing.assert_close(shared[0].grad, shared[1].grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_active(dtype):
    head = make_head(40, 64, 252, dtype)
    x = make_inputs(40, 252, kind=torch.zeros(40, dtype=torch.long))
    out = wavalign_loss(head[0], head[1], x, bias=head[2], impl="torch")
    out.loss.backward()
    assert out.loss == 0 and torch.count_nonzero(out.logp) == 0
    assert all(torch.count_nonzero(t.grad) == 0 and torch.isfinite(t.grad).all() for t in head)
    none = torch.zeros(40, dtype=torch.bool)
    logp, entropy = linear_logprob(*head[:2], torch.full((40,), -1), active=none, impl="torch")
    (logp.sum() + entropy.sum()).backward()
    assert torch.count_nonzero(logp) == torch.count_nonzero(entropy) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inactive_rows_get_exactly_zero_whatever_they_hold(dtype):
    head, x = make_head(123, 64, 252, dtype), make_inputs(123, 252)
    with torch.no_grad():
        head[0][x.kind == NONE] = float("nan")
    out = wavalign_loss(head[0], head[1], x, bias=head[2], impl="torch")
    out.loss.backward()
    assert torch.isfinite(out.loss) and torch.count_nonzero(head[0].grad[x.kind == NONE]) == 0
    assert torch.isfinite(head[1].grad).all()
    assert torch.count_nonzero(out.logp[x.kind == NONE]) == torch.count_nonzero(out.entropy[x.kind == NONE]) == 0


def test_nan_is_never_silent(device):
    head, x = make_head(123, 33, 252, torch.float32, device=device), make_inputs(123, 252, device)
    row = int((x.kind == ANCHOR).nonzero()[0, 0])
    with torch.no_grad():
        head[0][row, 3] = float("nan")
    out = wavalign_loss(head[0], head[1], x, impl="torch")
    assert torch.isnan(out.loss) and torch.isnan(out.logp[row])
    assert torch.isnan(linear_logprob(head[0], head[1], x.targets.clamp(0), impl="torch")[0][row])
    assert torch.isnan(logits_loss(head[0].detach() @ head[1].detach().T, x, impl="torch").loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_impossible_entries(dtype, device):
    """A bias of −∞ leaves an entry out: as if the head did not have it."""
    h, w, bias = (t.to(device, dtype) for t in (torch.randn(40, 64), torch.randn(507, 64), torch.zeros(507)))
    possible = torch.arange(507, device=device) % 3 > 0
    bias[~possible] = -torch.inf
    y, outcomes = torch.randint(338, (40,)).to(device), []
    for weight, target, b in ((w, possible.nonzero()[y, 0], bias), (w[possible], y, None)):
        weight = weight.clone().requires_grad_()
        logp, entropy = linear_logprob(h, weight, target, bias=b, impl="torch")
        assert entropy is not None
        (logp.sum() + entropy.sum()).backward()
        outcomes.append([logp, entropy, weight.grad])
    (*values, grad), (*smaller, smaller_grad) = outcomes
    torch.testing.assert_close(values, smaller)
    torch.testing.assert_close(grad[possible], smaller_grad)
    assert torch.count_nonzero(grad[~possible]) == 0


@pytest.mark.parametrize("shift", [-128.0, -3e4, 3e4])
def test_rows_far_from_zero(shift, device):
    """verl's Triton head starts its running maximum at 0: around −128 its log-prob is +inf."""
    logits = torch.randn(40, 252, dtype=torch.float64).float().to(device) + shift
    x = make_inputs(40, 252, device, temperature=1.0)
    wide = logits.double().requires_grad_()
    logits.requires_grad_()
    ours, truth = logits_loss(logits, x, impl="torch"), mixed_loss(wide, x)
    ours.loss.backward()
    truth.backward()
    torch.testing.assert_close(ours.loss.double(), truth.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("margin", [12.0, 24.0])
def test_confident_targets_keep_their_gradient(margin, device):
    """p_y about 1 − 1e-3 and 1 − 1e-8, where 1 − p_y formed from p_y in fp32 would be rounding, or 0."""
    logits = torch.randn(40, 252).to(device)
    targets = torch.randint(252, (40,)).to(device)
    logits[torch.arange(40), targets] += margin
    x = LossInputs(torch.full_like(targets, ANCHOR), targets, torch.ones(40, device=device))
    wide = logits.double().requires_grad_()
    logits.requires_grad_()
    logits_loss(logits, x, impl="torch").loss.backward()
    mixed_loss(wide, x).backward()
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=2e-5, atol=0)


def test_leading_dimensions_and_entropy_off():
    h, w, _ = make_head(60, 33, 252)
    targets = torch.randint(252, (60,))
    flat = linear_logprob(h, w, targets, impl="torch")
    logp, entropy = linear_logprob(h.view(4, 15, 33), w, targets.view(4, 15), impl="torch")
    assert torch.equal(logp.flatten(), flat[0]) and entropy is not None and torch.equal(entropy.flatten(), flat[1])
    logp, entropy = linear_logprob(h, w, targets, entropy=False, impl="torch")
    assert entropy is None and torch.equal(logp, flat[0])
