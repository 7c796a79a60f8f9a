"""The public functions with impl="triton" against the definition, PyTorch in the same dtype, and impl="reference"."""

from dataclasses import replace

import interpreter
import pytest
import torch
from definition import error, loss, plain, softmax
from place import SLACK, marks, put
from torch import Tensor
from wavalign_kernels import ANCHOR, NONE, PREFERENCE, LossInputs, linear_logprob, logits_loss, wavalign_loss

interpreter.mend()

pytestmark = marks()

T, H, V = 23, 20, 507
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {
    torch.float32: 1e-6 * SLACK,
    torch.bfloat16: 1e-5,
    torch.float16: 1e-5,
}  # of a norm; half precision rounds to 1e-3


def head(dtype: torch.dtype, vocab: int = V) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((T, H), (vocab, H), (vocab,))
    h, w, b = (torch.randn(shape, generator=g) for shape in shapes)
    h = 2 * h / H**0.5  # logits of standard deviation 2
    return tuple(put(t.to(dtype)).requires_grad_() for t in (h, w, b))  # type: ignore


def stream(vocab: int = V, **changes) -> LossInputs:
    """Every kind of position, a temperature of its own at each, ratios inside and outside the clip."""
    g = torch.Generator().manual_seed(2)
    targets, tau = torch.randint(0, vocab, (T,), generator=g), 0.7 + torch.rand(T, generator=g)
    logits = exact_logits(head(torch.float32, vocab))[1].detach().cpu()
    near = softmax(logits, targets, None, tau).logp.float()
    columns = dict(
        kind=torch.arange(T) * 7 % 3,
        targets=targets,
        weights=torch.rand(T, generator=g),
        advantages=torch.randn(T, generator=g),
        old_logp=near + 0.3 * torch.randn(T, generator=g),
        ref_logp=near + 0.3 * torch.randn(T, generator=g),
        kl_weights=0.1 * torch.rand(T, generator=g).round(),
        entropy_coef=0.05,
        clip_c=1.3,
        lam=0.3,
        preference_denominator=5.0,
        anchor_denominator=4.0,
        temperature=tau,
    )
    return put(LossInputs(**{**columns, **changes}))  # type: ignore


def exact_logits(tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Leaves in float64 and the logits made from them."""
    h, w, b = leaves = tuple(t.detach().double().requires_grad_() for t in tensors)
    return leaves, h @ w.T + b


def torch_logits(tensors: tuple[Tensor, ...]) -> Tensor:
    """Products in the storage dtype, softmax in fp32: what a model without a fused head does."""
    h, w, b = tensors
    return (h @ w.T + b).float()


def assert_no_worse(got, same_dtype, exact, tolerance: float) -> None:
    for i, (a, b, c) in enumerate(zip(got, same_dtype, exact, strict=True)):
        assert error(a, c) <= error(b, c) + tolerance, f"result {i}"


@pytest.mark.parametrize("chunk_rows", [None, 4], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_logprob(dtype: torch.dtype, entropy: bool, chunk_rows: int | None) -> None:
    tensors, x = head(dtype), stream()
    active = x.kind != NONE
    slope, slope_h = (put(torch.linspace(a, b, T)) * active for a, b in ((-1, 1), (1, 0.2)))

    def results(leaves, logp, ent):
        value = (slope * logp).sum() + ((slope_h * ent).sum() if entropy else 0.0)
        return logp * active, *([ent * active] if entropy else []), *torch.autograd.grad(value, leaves)

    leaves, z = exact_logits(tensors)
    s = softmax(z, x.targets, None, x.temperature)
    exact = results(leaves, s.logp, s.entropy)
    same = results(tensors, *plain(torch_logits(tensors), x.targets, None, x.temperature))
    h, w, b = tensors
    options = dict(active=active, bias=b, temperature=x.temperature, entropy=entropy)
    logp, ent = linear_logprob(h, w, x.targets, impl="triton", chunk_rows=chunk_rows, **options)
    assert (ent is None) is not entropy
    assert not bool(logp[~active].any()) and (ent is None or not bool(ent[~active].any()))
    assert_no_worse(results(tensors, logp, ent), same, exact, TOLERANCE[dtype])
    expected, _ = linear_logprob(h, w, x.targets, impl="reference", **options)
    assert torch.allclose(logp, expected, atol=2e-5)


@pytest.mark.parametrize("chunk_rows", [None, 4], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("vocab", [252, 507, 123])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wavalign_loss(dtype: torch.dtype, vocab: int, chunk_rows: int | None) -> None:
    tensors, x = head(dtype, vocab), stream(vocab)
    active = x.kind != NONE

    def results(leaves, logp, ent):
        value = loss(logp, ent, x)
        return value, logp * active, ent * active, *torch.autograd.grad(value, leaves)

    leaves, z = exact_logits(tensors)
    s = softmax(z, x.targets, None, x.temperature)
    exact = results(leaves, s.logp, s.entropy)
    same = results(tensors, *plain(torch_logits(tensors), x.targets, None, x.temperature))
    h, w, b = tensors
    out = wavalign_loss(h, w, x, bias=b, impl="triton", chunk_rows=chunk_rows)
    got = (out.loss, out.logp, out.entropy, *torch.autograd.grad(out.loss, tensors))
    assert_no_worse(got, same, exact, TOLERANCE[dtype])
    expected = wavalign_loss(h, w, x, bias=b, impl="reference")
    for name in ("preference", "anchor", "surrogate", "kl", "entropy"):
        assert torch.allclose(getattr(out.parts, name), getattr(expected.parts, name), rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_loss(dtype: torch.dtype) -> None:
    x = stream()
    z = put(torch.randn(T, V, generator=torch.Generator().manual_seed(3)).to(dtype)).requires_grad_()

    def results(leaf, logp, ent):
        value = loss(logp, ent, x)
        return value, torch.autograd.grad(value, leaf)[0]

    wide = z.detach().double().requires_grad_()
    s = softmax(wide, x.targets, None, x.temperature)
    same = results(z, *plain(z.float(), x.targets, None, x.temperature))
    out = logits_loss(z, x, impl="triton", chunk_rows=4)
    (grad,) = torch.autograd.grad(out.loss, z)
    assert_no_worse((out.loss, grad), same, results(wide, s.logp, s.entropy), TOLERANCE[dtype])
    assert grad.dtype == dtype and not bool(grad[x.kind == NONE].any())
    columns = z.detach().T.contiguous().T.requires_grad_()
    again = logits_loss(columns, x, impl="triton")
    assert torch.equal(torch.autograd.grad(again.loss, columns)[0], grad)


VARIANTS = {
    "on policy": dict(old_logp=None),
    "no kl": dict(ref_logp=None, kl_weights=None),
    "no entropy": dict(entropy_coef=0.0),
    "anchors": dict(kind=torch.full((T,), ANCHOR), advantages=None, old_logp=None, ref_logp=None, kl_weights=None),
    "preferences": dict(kind=torch.full((T,), PREFERENCE), lam=None),
    "nothing active": dict(kind=torch.zeros(T, dtype=torch.long)),
    "one temperature": dict(temperature=0.7),
    "no temperature": dict(temperature=1.0),
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_variants_equal_the_reference(change: dict) -> None:
    h, w, b = tensors = head(torch.float32)
    x = put(replace(stream(), **change))
    got, expected = (wavalign_loss(h, w, x, bias=b, impl=impl, chunk_rows=5) for impl in ("triton", "reference"))
    grads, wanted = (torch.autograd.grad(o.loss, tensors, allow_unused=True) for o in (got, expected))
    assert torch.allclose(got.loss, expected.loss, rtol=1e-5)
    for a, c in zip(grads, wanted, strict=True):
        assert a is not None and torch.allclose(a, torch.zeros_like(a) if c is None else c, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [0, 1, 2], ids=["hidden", "weight", "bias"])
def test_frozen_input(frozen: int) -> None:
    tensors, x = head(torch.float32), stream()
    whole = wavalign_loss(tensors[0], tensors[1], x, bias=tensors[2], impl="triton")
    expected = list(torch.autograd.grad(whole.loss, tensors))
    tensors[frozen].requires_grad_(False)
    rest = [t for t in tensors if t.requires_grad]
    out = wavalign_loss(tensors[0], tensors[1], x, bias=tensors[2], impl="triton")
    del expected[frozen]
    for a, c in zip(torch.autograd.grad(out.loss, rest), expected, strict=True):
        assert torch.equal(a, c)
    with torch.no_grad():
        silent = wavalign_loss(tensors[0], tensors[1], x, bias=tensors[2], impl="triton")
    assert not silent.loss.requires_grad and torch.equal(silent.loss, out.loss)


def test_not_a_number_reaches_loss_and_gradient() -> None:
    h, w, _ = head(torch.float32)
    x = stream()
    with torch.no_grad():
        h[int((x.kind == PREFERENCE).nonzero()[0, 0]), 3] = float("nan")
    out = wavalign_loss(h, w, x, impl="triton")
    dw = torch.autograd.grad(out.loss, w)[0]
    assert bool(out.loss.isnan()) and bool(dw.isnan().all())


def test_runs_repeat_bit_for_bit() -> None:
    h, w, b = tensors = head(torch.bfloat16)
    runs = [torch.autograd.grad(wavalign_loss(h, w, stream(), bias=b, impl="triton").loss, tensors) for _ in range(2)]
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))
