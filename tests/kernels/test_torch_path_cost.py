"""What the torch path costs, counted; and its accuracy beside the heads that ship with verl."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from wavalign_kernels import ANCHOR, LossInputs, amx, linear_logprob, wavalign_loss
from wavalign_kernels import chunked as chunked_module

H, V = 32, 1031


def sparse_inputs(length: int, active: int) -> LossInputs:
    kind = torch.zeros(length, dtype=torch.long)
    kind[torch.randperm(length)[:active]] = ANCHOR
    return LossInputs(kind, torch.randint(V, (length,)), torch.ones(length))


def flops(function) -> int:
    """Of all products over active rows: torch's, of which it forgets those added in place, and those of `amx`."""
    made_in_c = 0

    def counted(original):
        def call(head, *rest):
            nonlocal made_in_c
            made_in_c += 2 * len(head.r) * head.weight.numel()
            return original(head, *rest)

        return call

    def dweight_into(dw, d, h, first):
        nonlocal made_in_c
        made_in_c += 2 * len(h) * dw.numel()
        return into(dw, d, h, first)

    def added(_, a, b, out_shape=None, **options):
        return 2 * a[0] * a[1] * b[1]

    into = amx.dweight_into
    with (
        pytest.MonkeyPatch.context() as patch,
        FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter,
    ):
        patch.setattr(amx, "dweight_into", dweight_into)
        for name in ("statistics", "gradient"):
            patch.setattr(amx._Head, name, counted(getattr(amx._Head, name)))
        function()
    return counter.get_total_flops() + made_in_c


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [64, 4096])
def test_cost_follows_the_active_rows(dtype, length):
    """Exactly 6·A·H·V for the loss and its gradient, whatever T; 2 for numbers alone, 4 where the weight is frozen."""
    active, unit = 50, 50 * H * V
    x = sparse_inputs(length, active)
    h, w = torch.randn(length, H).to(dtype).requires_grad_(), torch.randn(V, H).to(dtype).requires_grad_()

    def loss(weight):
        return wavalign_loss(h, weight, x, impl="torch", chunk_rows=20).loss

    assert flops(lambda: loss(w).backward()) == 6 * unit
    assert flops(lambda: loss(w.detach()).backward()) == 4 * unit
    with torch.no_grad():
        assert flops(lambda: loss(w)) == 2 * unit

    def logprob():
        return linear_logprob(h, w, x.targets, active=x.kind == ANCHOR, impl="torch")

    kept = []
    assert flops(lambda: kept.append(logprob())) == 2 * unit
    assert flops(lambda: (kept[0][0].sum() + kept[0][1].sum()).backward()) == 6 * unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_allocation_is_one_chunk(dtype, monkeypatch):
    """Nothing of the size of [A, V], let alone [T, V]: the largest tensor made is a chunk of logits, or dW."""
    largest = 0
    empty = torch.empty

    def watched(*shape, **options):
        nonlocal largest
        made = empty(*shape, **options)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(chunked_module.torch, "empty", watched)
    x = sparse_inputs(4096, 2000)
    h, w = torch.randn(4096, H).to(dtype).requires_grad_(), torch.randn(V, H).to(dtype).requires_grad_()
    wavalign_loss(h, w, x, impl="torch", chunk_rows=96).loss.backward()
    assert 0 < largest <= 96 * V


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_more_accurate_than_verls_torch_head(temperature):
    """The same bf16 inputs and the same gradients of log-prob and entropy: every error against float64 is smaller."""
    pytest.importorskip("verl")
    from verl.utils.experimental.torch_functional import FusedLinearForPPOFunction

    torch.manual_seed(0)
    rows, width, vocab = 600, 64, 2048
    h, w = torch.randn(rows, width).bfloat16(), (torch.randn(vocab, width) * 0.3).bfloat16()
    y, g = torch.randint(vocab, (rows,)), torch.randn(rows)

    def outcome(function, dtype):
        hidden, weight = h.to(dtype, copy=True).requires_grad_(), w.to(dtype, copy=True).requires_grad_()
        logp, entropy = function(hidden, weight)
        (logp * g + 0.1 * entropy).sum().backward()
        return [t.detach().double() for t in (logp, entropy, hidden.grad, weight.grad)]

    def definition(hidden, weight):
        z = hidden @ weight.T / temperature
        logq = z - torch.logsumexp(z, 1, keepdim=True)
        return logq[torch.arange(rows), y], -(logq.exp() * logq).sum(1)

    truth = outcome(definition, torch.float64)
    theirs = outcome(lambda a, b: FusedLinearForPPOFunction.apply(a, b, y, temperature, 512), torch.bfloat16)
    ours = outcome(
        lambda a, b: linear_logprob(a, b, y, temperature=temperature, impl="torch", chunk_rows=200), torch.bfloat16
    )
    for name, o, v, t in zip(("logp", "entropy", "dHidden", "dWeight"), ours, theirs, truth, strict=True):
        assert (o - t).norm() < (v - t).norm(), name


def test_sums_over_chunks_lose_nothing():
    """bf16 sums over chunks in fp32: in one chunk or 200, the error against float64 is that of rounding."""
    x = replace(sparse_inputs(300, 200), weights=torch.rand(300))
    torch.manual_seed(0)
    stored = torch.randn(300, H).bfloat16(), torch.randn(V, H).bfloat16()

    def weight_gradient(dtype, **options):
        h, w = (t.to(dtype, copy=True).requires_grad_() for t in stored)
        wavalign_loss(h, w, x, **options).loss.backward()
        return w.grad.double()

    truth = weight_gradient(torch.float64, impl="reference")
    for chunk_rows in (None, 64, 1):
        error = weight_gradient(torch.bfloat16, impl="torch", chunk_rows=chunk_rows) - truth
        assert error.norm() / truth.norm() < 3.5e-3, chunk_rows
