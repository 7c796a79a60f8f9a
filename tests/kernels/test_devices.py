"""What the package makes for itself lies where the tensors lie: an accelerator's tensors without an accelerator.

PyTorch's fake tensors have a device, shapes and dtypes but no memory, and an operation between two devices raises. So
every line that an accelerator would run is seen, but for the checks of values and the search for active positions,
which need numbers, and for Triton's launch. A number that is asked for raises too: what runs here waits for nothing.
"""

from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from wavalign_kernels import (
    LossInputs,
    checks,
    chunked,
    linear_logprob,
    logits_loss,
    matmul,
    passes,
    torch_rows,
    wavalign_loss,
)
from wavalign_kernels.autograd import LinearLogprob

T, H, V, A = 64, 32, 507, 40
CUDA = torch.device("cuda", 0)


def triton_like(z: Tensor, d: Tensor | None, rows, bias, stats, *, slopes=None, loss=None, entropy=True) -> None:
    """In the place of Triton's row step: what it is handed lies on the device, whole and of the width that it reads."""
    columns = [rows.targets, rows.inv_temperature, bias, stats.logp, stats.one_minus_p, stats.lse, stats.entropy]
    for record in (slopes, loss):
        columns += [] if record is None else [c for c in vars(record).values() if isinstance(c, Tensor)]
    for column in (z, d, *columns):
        assert column is None or (column.device == CUDA and column.is_contiguous())
    assert z.dtype == torch.float32 and z.shape[1] == V
    assert all(c is None or c.dtype in (torch.float32, torch.int64, torch.bool) for c in columns)


@pytest.fixture(params=[torch_rows.step, triton_like], ids=["torch", "triton"])
def accelerator(request, monkeypatch):
    monkeypatch.setattr(checks, "_check_scalar", lambda *_: None)  # it looks into scalars on the CPU
    monkeypatch.setattr(passes, "_row_step", lambda _: request.param)
    with FakeTensorMode():
        yield


def tensor(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = CUDA) -> Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


def stream(scalars: torch.device | str, temperature: Tensor) -> LossInputs:
    kind = tensor(T, dtype=torch.long)
    lam, preference, anchor = (tensor(device=scalars) for _ in range(3))
    columns = [tensor(T) for _ in range(5)]
    return LossInputs(kind, kind, *columns, None, 0.1, 0.2, 0.2, 3.0, lam, preference, anchor, temperature)


@pytest.mark.parametrize("scalars", ["cpu", CUDA], ids=str)
@pytest.mark.parametrize("wide_sums", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("accelerator")
def test_everything_lies_on_the_accelerator(dtype, wide_sums, scalars, monkeypatch):
    monkeypatch.setattr(matmul, "_accumulates_wide", lambda *_: wide_sums)
    added = mock.Mock()
    monkeypatch.setattr(torch, "addmm", added)  # its fake does not know out_dtype
    known = dict(index=torch.arange(A, device=CUDA), check=False)
    h, w, b = (tensor(*shape, dtype=dtype).requires_grad_() for shape in ((T, H), (V, H), (V,)))
    for temperature in (tensor(T), tensor(device=scalars)):
        x = stream(scalars, temperature)
        out = wavalign_loss(h, w, x, bias=b, chunk_rows=17, impl="torch", **known)
        parts = vars(out.parts).values()
        assert all(t.device == CUDA for t in (out.loss, out.logp, out.entropy, *parts, *out.loss.grad_fn.grads))
        assert [g.dtype for g in out.loss.grad_fn.grads] == [dtype] * 3
        logp, entropy = linear_logprob(
            h, w, x.targets, bias=b, temperature=temperature, chunk_rows=17, impl="torch", **known
        )
        ((node, _),) = logp.grad_fn.next_functions  # behind the view that has hidden's leading dimensions
        grads = LinearLogprob.backward(node, logp.detach(), entropy.detach())[:3]
        assert all(t.device == CUDA for t in (logp, entropy, *grads))
        z = tensor(T, V, dtype=dtype).requires_grad_()
        assert all(g.device == CUDA for g in logits_loss(z, x, impl="torch", **known).loss.grad_fn.grads)
    assert added.called == (wide_sums and dtype == torch.bfloat16)


@pytest.mark.parametrize("known", [{}, {"index": A}, {"check": False}], ids=str)
@pytest.mark.usefixtures("accelerator")
def test_without_both_arguments_an_accelerator_is_asked(known):
    known = {name: torch.arange(A, device=CUDA) if name == "index" else value for name, value in known.items()}
    h, w = (tensor(*shape).requires_grad_() for shape in ((T, H), (V, H)))
    x = stream(CUDA, tensor(T))
    for call in (
        lambda: wavalign_loss(h, w, x, impl="torch", **known),
        lambda: linear_logprob(h, w, x.targets, active=None if "index" in known else x.kind > 0, impl="torch", **known),
    ):
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            call()


@pytest.mark.parametrize("scalars", ["cpu", CUDA], ids=str)
@pytest.mark.usefixtures("accelerator")
def test_nothing_is_copied_from_the_cpu(scalars):
    """A copy from ordinary memory cannot be captured in a CUDA graph; a scalar that goes along with a kernel can."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            inputs = [a for a in args if isinstance(a, Tensor)]
            if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
                seen.extend(a.device for a in inputs)
            return result

    known = dict(index=torch.arange(A, device=CUDA), check=False)
    h, w = (tensor(*shape).requires_grad_() for shape in ((T, H), (V, H)))
    with Watch():
        for temperature in (tensor(T), tensor(device=scalars), 0.7):
            x = stream(scalars, temperature)
            wavalign_loss(h, w, x, impl="torch", **known)
            linear_logprob(h, w, x.targets, temperature=temperature, impl="torch", **known)
    assert torch.device("cpu") not in seen


@pytest.mark.usefixtures("accelerator")
def test_a_pass_without_gradients_keeps_half_the_rows(monkeypatch):
    """fp32 logits of 1024 rows and nothing else of size V, where an update has 2048 rows of logits and of dlogits."""
    made, memory, empty = [], matmul.memory, torch.empty
    monkeypatch.setattr(matmul, "_accumulates_wide", lambda *_: False)

    def watched(*shape, **options):
        made.append(empty(*shape, **options))
        return made[-1]

    monkeypatch.setattr(chunked.torch, "empty", watched)
    monkeypatch.setattr(matmul, "memory", lambda *arguments: made.append(memory(*arguments)) or made[-1])
    rows = 4096
    h, w = (tensor(*shape, dtype=torch.bfloat16).requires_grad_() for shape in ((rows, H), (V, H)))
    known = dict(index=torch.arange(rows, device=CUDA), check=False)
    y = tensor(rows, dtype=torch.long)
    linear_logprob(h, w, y, impl="torch", **known)
    assert max(t.numel() for t in made if t.dim() == 1) == 1024 * V
    made.clear()
    x = LossInputs(2 * y, y, tensor(rows))
    wavalign_loss(h, w, x, impl="torch", **known)
    assert {(tuple(t.shape), t.dtype) for t in made if t.numel() >= 2048 * V} == {
        ((2048 * V,), torch.bfloat16),
        ((2048, V), torch.float32),
    }
