"""Inputs at the edge of what is allowed, in every implementation, against the definition in float64."""

from dataclasses import replace
from typing import Any

import interpreter
import pytest
import torch
from definition import dlogits, error, loss, slopes, softmax
from place import DEVICE, INTERPRETED, SLACK, marks, put
from torch import Tensor
from wavalign_kernels import ANCHOR, NONE, PREFERENCE, LossInputs, avx512, linear_logprob, logits_loss, wavalign_loss

interpreter.mend()

pytestmark = marks()

IMPLS = ["triton", "torch", "reference", *(["torch without C"] if INTERPRETED else [])]
COUNT, V = 6, 4200  # columns in two blocks of Triton's
FAR = [20.5, 100.0, 200.0, 1e4, float("inf")]
TOLERANCE = 2e-6 * SLACK


@pytest.fixture(params=IMPLS)
def impl(request, monkeypatch) -> str:
    if request.param == "torch without C":
        monkeypatch.setattr(avx512, "library", lambda: None)
    return request.param.split()[0]


def logits(seed: int = 0) -> Tensor:
    return put(3 * torch.randn(COUNT, V, generator=torch.Generator().manual_seed(seed)))


def stream(kind: int = PREFERENCE, **changes: Any) -> LossInputs:
    g = torch.Generator().manual_seed(1)
    x = LossInputs(
        kind=torch.full((COUNT,), kind),
        targets=torch.randint(V, (COUNT,), generator=g),
        weights=0.5 + torch.rand(COUNT, generator=g),
        advantages=torch.tensor([1.0, -1.0, 0.0, 0.3, -0.3, 2.0]),
        old_logp=-10 + torch.randn(COUNT, generator=g),
        entropy_coef=0.1,
        lam=0.3,
        preference_denominator=3.0,
        anchor_denominator=2.0,
    )
    return put(replace(x, **changes))


def assert_as_defined(z: Tensor, x: LossInputs, impl: str) -> None:
    """Loss, entropy and gradient in the logits; finite where the definition is."""
    exact = softmax(z, x.targets, None, x.temperature)
    wanted = loss(exact.logp, exact.entropy, x)
    grad = dlogits(exact, x.targets, *slopes(exact, x), x.temperature)
    leaf = z.clone().requires_grad_()
    out = logits_loss(leaf, x, impl=impl)
    out.loss.backward()
    assert leaf.grad is not None
    assert bool(grad.isfinite().all()) and bool(leaf.grad.isfinite().all())
    assert error(leaf.grad, grad) < TOLERANCE
    assert torch.allclose(out.loss.double(), wanted, rtol=TOLERANCE * 10)
    assert error(out.entropy, exact.entropy) < TOLERANCE


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("far", FAR)
def test_old_log_probs_far_away(far: float, sign: int, impl: str) -> None:
    """The ratio ends at exp(±20), where it has no gradient, whatever the advantage."""
    z = logits()
    near = softmax(z, stream().targets).logp.float()
    assert_as_defined(z, stream(old_logp=near + sign * far), impl)
    only = logits_loss(z.requires_grad_(), stream(old_logp=near + sign * far, entropy_coef=0.0), impl=impl)
    only.loss.backward()
    assert z.grad is not None and not bool(z.grad.any())


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("far", FAR)
def test_references_far_away(far: float, sign: int, impl: str) -> None:
    z, kappa = logits(), torch.tensor([0.0, 0.1, 0.2, 0.0, 1.0, 1e-3])
    near = softmax(z, stream().targets).logp.float()
    assert_as_defined(z, stream(ref_logp=near + sign * far, kl_weights=kappa), impl)


@pytest.mark.parametrize("gap", [-19.9, -1.0, 1.0, 19.9])
def test_within_the_limit_there_is_a_gradient(gap: float, impl: str) -> None:
    z = logits()
    near = softmax(z, stream().targets).logp.float()
    x = stream(advantages=torch.full((COUNT,), -1.0 if gap > 0 else 1.0), ref_logp=near - gap, entropy_coef=0.0)
    x = put(replace(x, old_logp=near - gap, kl_weights=torch.ones(COUNT)))
    assert_as_defined(z, x, impl)


def test_what_stands_where_a_weight_is_zero_means_nothing(impl: str) -> None:
    z, none = logits(), torch.tensor([True, False, True, False, False, True])
    x = stream(
        weights=torch.where(none, 0.0, 1.0),
        old_logp=torch.where(none, torch.nan, -9.0),
        ref_logp=torch.where(none, -9.0, torch.nan),
        kl_weights=torch.where(none, 0.5, 0.0),
    )
    assert_as_defined(z, x, impl)


@pytest.mark.parametrize("neighbour", [False, True])
@pytest.mark.parametrize("others", ["finite", "masked"])
def test_a_target_of_minus_infinity(others: str, neighbour: bool, impl: str) -> None:
    """p_y = 0: the entropy is that of the others, and a preference term is at its limit."""
    z, x = logits(), stream(ref_logp=torch.full((COUNT,), -9.0), kl_weights=torch.ones(COUNT))
    x = put(replace(x, targets=torch.arange(COUNT)))
    if others == "masked":
        z[:, ::2] = -torch.inf
    if neighbour:
        z[:, 4096:] = -torch.inf  # the same lanes' second block
    z[torch.arange(COUNT), x.targets] = -torch.inf
    assert_as_defined(z, x, impl)


def test_an_anchor_on_a_target_of_minus_infinity(impl: str) -> None:
    """The loss is infinite and says so; the gradient pulls the target up all the same."""
    z, x = logits(), stream(ANCHOR, entropy_coef=0.0)
    z[torch.arange(COUNT), x.targets] = -torch.inf
    exact = softmax(z, x.targets)
    grad = dlogits(exact, x.targets, *slopes(exact, x))
    out = logits_loss(z.requires_grad_(), x, impl=impl)
    out.loss.backward()
    assert out.loss == torch.inf and bool((out.logp == -torch.inf).all())
    assert error(out.entropy, exact.entropy) < TOLERANCE
    assert z.grad is not None and error(z.grad, grad) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_masked_vocabulary(dtype: torch.dtype, impl: str) -> None:
    """Entries left out by a bias of −∞, targets among them in two rows."""
    g = torch.Generator().manual_seed(3)
    h, w = (put(torch.randn(n, 32, generator=g).to(dtype)) for n in (COUNT, 507))
    bias = put(torch.where(torch.arange(507) % 3 == 0, -torch.inf, 0.0).to(dtype))
    y = put(torch.tensor([0, 3, 1, 2, 4, 506]))
    h, w = h.requires_grad_(), w.requires_grad_()
    logp, entropy = linear_logprob(h, w, y, bias=bias, impl=impl)
    a, b = put(torch.linspace(-1, 1, COUNT)), put(torch.linspace(2, 1, COUNT))
    exact = softmax((h.double() @ w.double().T + bias.double()).detach(), y)
    assert torch.allclose(logp.double(), exact.logp, rtol=1e-5) and entropy is not None
    assert error(entropy, exact.entropy) < TOLERANCE
    got = torch.autograd.grad((b * entropy).sum() + torch.where(logp > -torch.inf, a * logp, 0.0).sum(), (h, w))
    d = dlogits(exact, y, torch.where(exact.logp > -torch.inf, a.double(), 0.0), b.double())
    for ours, true in zip(got, (d @ w.double(), d.T @ h.double()), strict=True):
        assert error(ours, true) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_a_surrounding_autocast_rounds_nothing(lower: torch.dtype, impl: str) -> None:
    g = torch.Generator().manual_seed(4)
    values = [put(torch.randn(n, 24, generator=g)) for n in (COUNT, 507)]
    x = put(replace(stream(), targets=torch.arange(COUNT)))

    def outcome(enabled: bool) -> list[Tensor]:
        h, w = (t.clone().requires_grad_() for t in values)
        with torch.autocast(DEVICE.type, lower, enabled=enabled):
            out = wavalign_loss(h, w, x, impl=impl)
            logp, entropy = linear_logprob(h, w, x.targets, impl=impl)
            assert entropy is not None
            if impl == "reference":  # plain autograd: its backward is the caller's
                return [out.loss, out.entropy, logp, entropy]
            grads = [torch.autograd.grad(value, (h, w)) for value in (out.loss, logp.sum() + 0.1 * entropy.sum())]
        return [out.loss, out.entropy, logp, entropy, *grads[0], *grads[1]]

    for inside, outside in zip(outcome(True), outcome(False), strict=True):
        assert torch.equal(inside, outside)


def test_no_positions_at_all(impl: str) -> None:
    h, w = put(torch.empty(0, 24)).requires_grad_(), put(torch.randn(507, 24)).requires_grad_()
    empty, none = put(torch.empty(0)), put(torch.empty(0, dtype=torch.long))
    x = LossInputs(none, none, empty, empty, empty, temperature=empty, lam=0.5)
    out = wavalign_loss(h, w, x, impl=impl)
    out.loss.backward()
    assert out.loss == 0 and out.logp.shape == (0,) and w.grad is not None and not bool(w.grad.any())
    logp, _ = linear_logprob(h, w, none, impl=impl)
    assert logp.shape == (0,)
    assert logits_loss(put(torch.empty(0, 507)), x, impl=impl).loss == 0


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_scalars_may_be_tensors(where: str, impl: str) -> None:
    z, x = logits(), replace(stream(), temperature=0.7)
    scalars = {"lam": 0.3, "preference_denominator": 3, "anchor_denominator": 2, "temperature": 0.7}
    held = {name: torch.tensor(value) for name, value in scalars.items()}
    tensors = replace(x, **({name: put(t) for name, t in held.items()} if where == "device" else held))
    got, wanted = (logits_loss(z, record, impl=impl) for record in (tensors, x))
    assert torch.allclose(got.loss, wanted.loss, rtol=1e-6) and got.loss.shape == ()


def test_nothing_of_an_inactive_row_reaches_anything(impl: str) -> None:
    g = torch.Generator().manual_seed(5)
    h, w = put(torch.randn(COUNT, 24, generator=g)), put(torch.randn(507, 24, generator=g))
    x = put(replace(stream(), targets=torch.tensor([-100, 1, 2, 3, 4, 5]), temperature=torch.ones(COUNT)))
    x.kind[0], x.weights[0], x.temperature[0], h[0] = NONE, torch.nan, 0.0, torch.nan  # type: ignore
    for call in ("loss", "logprob"):
        leaves = [t.clone().requires_grad_() for t in (h, w)]
        if call == "loss":
            value = wavalign_loss(leaves[0], leaves[1], x, impl=impl).loss
        else:
            options: dict[str, Any] = {"active": x.kind != NONE, "temperature": x.temperature}
            value = linear_logprob(leaves[0], leaves[1], x.targets, impl=impl, **options)[0].sum()
        value.backward()
        for leaf in leaves:
            assert leaf.grad is not None and bool(leaf.grad.isfinite().all())


BAD_VALUES = {
    "temperature": (dict(temperature=torch.tensor([1.0, 1, 0, 1, 1, 1])), "temperature is 0.0 at position 2"),
    "one temperature": (dict(temperature=torch.tensor(-1.0)), "temperature="),
    "denominator": (dict(anchor_denominator=torch.tensor(0.0)), "anchor_denominator="),
    "λ": (dict(lam=torch.tensor(1.5)), "lam="),
    "weight": (dict(weights=torch.tensor([1, 1, 1, -2.0, 1, 1])), "weights is -2.0 at position 3"),
    "target": (dict(targets=torch.full((COUNT,), V)), f"target {V} at active position 0"),
    "kind": (dict(kind=torch.tensor([1, 1, 1, 1, 1, 7])), "kind 7 at position 5"),
}


@pytest.mark.parametrize("changes, says", BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_on_the_device_are_checked(changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        logits_loss(logits(), put(replace(stream(), **changes)))
