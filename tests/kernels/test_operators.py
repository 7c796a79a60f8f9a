"""torch.compile takes a call into its graph whole, and what comes out is what comes out of a call without it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_streams import make_head, make_inputs
from torch import Tensor, nn
from wavalign_kernels import LossInputs, LossOutputs, linear_logprob, logits_loss, operators, wavalign_loss

ROWS, WIDTH, VOCAB = 60, 32, 507
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
HEADS = (torch.float32, torch.bfloat16, torch.float64)


class Model(nn.Module):
    """A layer before the head, so that dHidden goes on, and a loss of which `wavalign_loss` is one part."""

    def __init__(self, dtype: torch.dtype, frozen: bool = False, **options: Any) -> None:
        super().__init__()
        hidden, weight, bias = make_head(ROWS, WIDTH, VOCAB, dtype=dtype)
        self.body = nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.hidden = nn.Parameter(hidden.detach())
        self.weight, self.bias = (nn.Parameter(t.detach(), requires_grad=not frozen) for t in (weight, bias))
        self.options = options

    def forward(self, x: LossInputs) -> tuple[Tensor, LossOutputs]:
        hidden = self.body(self.hidden).tanh()
        out = wavalign_loss(hidden, self.weight, x, bias=self.bias, impl="torch", **self.options)
        return 3 * out.loss + hidden.square().mean(), out


class LogProbs(Model):
    def forward(self, x: LossInputs) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.body(self.hidden).tanh().view(4, -1, WIDTH)
        targets, active = x.targets.view(4, -1), (x.kind > 0).view(4, -1)
        logp, entropy = linear_logprob(
            hidden, self.weight, targets, active=active, bias=self.bias, temperature=0.7, **self.options
        )
        if entropy is None:
            entropy = torch.zeros_like(logp)
        return (logp * logp).sum() - entropy.sum(), logp, entropy


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def assert_equal(got: list[Tensor], expected: list[Tensor], exact: bool) -> None:
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == b.dtype and b.isfinite().all()
        near = torch.equal(a, b) if exact else bool((a - b).norm() <= 1e-5 * b.norm())
        assert near, f"result {i}: {(a - b).abs().max()}"


def compiled(model: nn.Module, backend: str) -> Any:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend=backend)


CHANGES = {
    "everything": {},
    "scalars": dict(lam=torch.tensor(0.3), anchor_denominator=torch.tensor(5.0), temperature=torch.tensor(0.7)),
    "on policy": dict(old_logp=None, ref_logp=None, kl_weights=None, lam=None, entropy_coef=0.0, temperature=1.0),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", CHANGES)
def test_the_loss_in_a_graph(change, backend):
    x = make_inputs(ROWS, VOCAB, **CHANGES[change])
    model = Model(torch.float32, chunk_rows=17)
    (loss, out), (wanted, expected) = compiled(model, backend)(x), model(x)
    numbers = [
        [wanted_or_got, o.logp, o.entropy, *vars(o.parts).values()]
        for wanted_or_got, o in ((loss, out), (wanted, expected))
    ]
    exact = backend == "aot_eager"
    assert_equal(*numbers, exact)
    assert not any(t.requires_grad for t in numbers[0][1:])
    assert_equal(gradients(model, loss), gradients(model, wanted), exact)


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_log_probs_in_a_graph(backend, entropy):
    x = replace(make_inputs(ROWS, VOCAB), temperature=1.0)
    model = LogProbs(torch.float32, entropy=entropy)
    got, expected = compiled(model, backend)(x), model(x)
    exact = backend == "aot_eager"
    assert_equal(list(got), list(expected), exact)
    assert_equal(gradients(model, got[0]), gradients(model, expected[0]), exact)


@pytest.mark.parametrize("dtype", HEADS, ids=str)
def test_dtypes_and_frozen_heads_in_a_graph(dtype):
    x = make_inputs(ROWS, VOCAB)
    for frozen in (False, True):
        model = Model(dtype, frozen)
        (loss, _), (wanted, _) = compiled(model, "aot_eager")(x), model(x)
        assert_equal(gradients(model, loss), gradients(model, wanted), exact=True)
        with torch.no_grad():
            assert torch.equal(compiled(model, "aot_eager")(x)[0], wanted)


def test_logits_in_a_graph():
    x, z = make_inputs(ROWS, VOCAB), torch.randn(ROWS, VOCAB, requires_grad=True)

    def loss(z: Tensor, x: LossInputs) -> Tensor:
        return 2 * logits_loss(z * 2, x).loss

    got, expected = torch.compile(loss, fullgraph=True, backend="aot_eager")(z, x), loss(z, x)
    assert torch.equal(got, expected)
    assert torch.equal(*(torch.autograd.grad(value, z)[0] for value in (got, expected)))


def test_another_number_of_active_rows_is_not_another_graph():
    counted = torch._dynamo.testing.CompileCounter()
    model = Model(torch.float32)
    torch.compiler.reset()
    call = torch.compile(model, fullgraph=True, backend=counted)
    for active in (60, 20, 0):
        x = make_inputs(ROWS, VOCAB)
        x = replace(x, kind=torch.where(torch.arange(ROWS) < active, 2, 0), targets=x.targets.clamp(min=0))
        assert torch.equal(call(x)[0], model(x)[0])
    assert counted.frame_count == 1


def test_a_compiled_call_is_checked_when_it_runs():
    x = make_inputs(ROWS, VOCAB)
    model = Model(torch.float32)
    call = compiled(model, "aot_eager")
    call(x)
    wrong = replace(x, targets=torch.full_like(x.targets, VOCAB))
    with pytest.raises(ValueError, match="target 507 at active position .* allowed: 0 to 506"):
        call(wrong)


def test_operators_are_what_they_say():
    """PyTorch's own check of schemas, fake results, and gradients in a graph with symbolic shapes."""
    h, w, b = make_head(ROWS, WIDTH, VOCAB, dtype=torch.float32)
    x, rest = make_inputs(ROWS, VOCAB), (None, True, "torch", None)
    columns = x.targets, x.kind > 0, x.temperature, 1.0, True
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(operators._logprob, (h, w, b, *columns, *rest), test_utils=tests)
    torch.library.opcheck(operators._loss, (h, w, b, *operators._flat(x), [True] * 3, *rest), test_utils=tests)
    z = torch.randn(ROWS, VOCAB, requires_grad=True)
    torch.library.opcheck(operators._logits_loss, (z, *operators._flat(x), True, *rest), test_utils=tests)
