"""What `bench_kernel.py` runs: one task, and everybody's way to do it.

The task is one update of a packed stream: log-probs and entropy of T positions, of which half the active ones are
preference rows (the clipped surrogate) and half anchor rows (weighted NLL), then the gradients of hidden and weight. A
peer that only makes log-probs gets the loss from plain PyTorch.
"""

import importlib.util
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Skipped(Exception):
    """A peer that cannot run here; the message says why."""


@dataclass(frozen=True)
class Case:
    """One configuration of the task."""

    tokens: int = 2048
    hidden: int = 512
    vocab: int = 32768
    share: float = 0.6
    dtype: str = "fp32"
    device: str = "cpu"

    @property
    def active(self) -> int:
        return round(self.tokens * self.share)

    @property
    def flops(self) -> int:
        """Three products over the active rows: no exact method does less."""
        return 6 * self.active * self.hidden * self.vocab


class Task:
    """The tensors of a case, equal in every process."""

    def __init__(self, case: Case, dtype: torch.dtype | None = None) -> None:
        with torch.device(case.device):  # a GPU draws its billion numbers in no time
            g = torch.Generator(case.device).manual_seed(0)
            t, a = case.tokens, case.active
            stored = DTYPES[case.dtype]
            hidden = torch.randn(t, case.hidden, generator=g).to(stored)
            weight = torch.randn(case.vocab, case.hidden, generator=g).mul_(0.05).to(stored)
            self.case = case
            self.hidden = hidden.to(dtype or stored).requires_grad_()
            self.weight = weight.to(dtype or stored).requires_grad_()
            self.targets = torch.randint(case.vocab, (t,), generator=g)
            kind = torch.cat([torch.zeros(t - a), torch.ones(a // 2), torch.full((a - a // 2,), 2.0)]).long()
            self.kind = kind[torch.randperm(t, generator=g)]
            self.weights = torch.rand(t, generator=g) + 0.5
            self.advantages = torch.randn(t, generator=g)
            self.old_logp = torch.randn(t, generator=g) * 0.1 - 11
        self.active = self.kind > 0

    def loss(self, logp: Tensor) -> Tensor:
        """The mixed loss from log-probs (T,), or (A,) of the active positions."""
        pick = slice(None) if len(logp) == len(self.kind) else self.active
        kind, w, adv, old = (c[pick] for c in (self.kind, self.weights, self.advantages, self.old_logp))
        ratio = torch.where(kind == 1, logp - old, 0.0).exp()
        surrogate = -w * torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv)
        return (
            torch.where(kind == 1, surrogate, 0.0) + torch.where(kind == 2, -w * logp, 0.0)
        ).sum() / self.case.active

    def clear(self) -> None:
        """No gradients from before."""
        self.hidden.grad = self.weight.grad = None

    def inputs(self) -> Any:
        """The loss for `wavalign_loss`."""
        from wavalign_kernels import LossInputs

        return LossInputs(
            kind=self.kind,
            targets=self.targets,
            weights=self.weights,
            advantages=self.advantages,
            old_logp=self.old_logp,
            preference_denominator=self.case.active,
            anchor_denominator=self.case.active,
        )

    def ignored(self) -> Tensor:
        return torch.where(self.active, self.targets, -100)


Run = Callable[[], Tensor | None]  # loss.backward() included; returns log-probs


def floor(task: Task, dtype: torch.dtype | None = None) -> Run:
    """The three products over the active rows, into memory that is already there."""
    hidden = task.hidden.detach()[task.active].to(dtype or task.hidden.dtype)
    weight = task.weight.detach().to(hidden.dtype)
    logits = torch.empty(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)
    dhidden, dweight = torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> None:
        torch.mm(hidden, weight.T, out=logits)
        torch.mm(logits, weight, out=dhidden)
        torch.mm(logits.T, hidden, out=dweight)

    return run


def floor_fp32(task: Task) -> Run:
    if task.case.dtype == "fp32":
        raise Skipped("it is the floor already")
    return floor(task, torch.float32)


def ours(task: Task, impl: str, chunk_rows: int | None = None) -> Run:
    from wavalign_kernels import wavalign_loss

    if impl == "triton" and task.case.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise Skipped("it needs an accelerator")
    inputs = task.inputs()

    def run() -> Tensor:
        out = wavalign_loss(task.hidden, task.weight, inputs, impl=impl, chunk_rows=chunk_rows)
        out.loss.backward()
        return out.logp

    return run


def portable(task: Task) -> Run:
    """PyTorch alone, products in fp32: what remains on a CPU without AMX, AVX-512 and bf16."""
    from wavalign_kernels import amx, avx512, matmul

    if task.case.device != "cpu":
        raise Skipped("it is about CPUs")
    run = ours(task, "torch")

    def without() -> Tensor | None:
        with ExitStack() as stack:
            for module in (amx, avx512):
                stack.enter_context(mock.patch.object(module, "library", lambda: None))
            stack.enter_context(mock.patch.object(matmul, "multiplies_bf16", lambda: False))
            return run()

    return without


def ours_logprob(task: Task) -> Run:
    from wavalign_kernels import linear_logprob

    def run() -> Tensor:
        logp, _ = linear_logprob(task.hidden, task.weight, task.targets, active=task.active)
        task.loss(logp).backward()
        return logp.detach()

    return run


def naive(task: Task) -> Run:
    """As the public WavAlign trainer: logits of all positions stored, one softmax for each loss and one for entropy."""

    def run() -> Tensor:
        logits, y = task.hidden @ task.weight.T, task.targets[:, None]
        policy = F.log_softmax(logits, -1).gather(1, y)[:, 0].float()
        anchor = F.log_softmax(logits, -1).gather(1, y)[:, 0].float()
        with torch.no_grad():
            _entropy = -(F.softmax(logits, -1) * F.log_softmax(logits, -1)).sum(-1)
        logp = torch.where(task.kind == 1, policy, anchor)
        task.loss(logp).backward()
        return logp.detach()

    return run


def verl_torch(task: Task) -> Run:
    head = verl_torch_head(task.case.device)
    return _from_logprob(task, lambda h, w: head(h, w, task.targets))


def verl_triton(task: Task) -> Run:
    head = verl_triton_head(task.case.device)
    return _from_logprob(task, lambda h, w: head(h, w, task.targets))


def verl_torch_head(_device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(hidden, weight, targets) -> log-probs (T,)."""
    _need("verl")
    from verl.utils.experimental.torch_functional import FusedLinearForPPOFunction

    return lambda h, w, y: FusedLinearForPPOFunction.apply(h, w, y, 1.0, 512)[0]


def verl_triton_head(device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(hidden, weight, targets) -> log-probs (T,)."""
    _need("verl")
    if device == "cpu":
        raise Skipped("it needs a GPU")
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    return lambda h, w, y: linear_cross_entropy(h, w, y, 1.0, "none")[0]


def liger_scaled(task: Task) -> Run:
    _need("liger_kernel")
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as Function  # pyright: ignore[reportMissingImports]

    return _from_logprob(task, lambda h, w: -Function.apply(h, w, task.ignored(), 1.0, -100, 1, True)[0])


def liger_grpo(task: Task) -> Run:
    """Its own loss, over the same positions, none of them anchors: time and memory alone can be compared."""
    _need("liger_kernel")
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss  # pyright: ignore[reportMissingImports]

    head = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, chunk_size=1, loss_type="grpo")
    rows = 4

    def fold(column: Tensor) -> Tensor:
        return column.view(rows, -1)

    def run() -> None:
        hidden = task.hidden.view(rows, -1, task.case.hidden)
        columns = fold(task.targets), fold(task.active).float(), task.advantages[:rows]
        head(hidden, task.weight, *columns, old_per_token_logps=fold(task.old_logp))[0].backward()

    return run


def cut_cross_entropy(task: Task) -> Run:
    _need("cut_cross_entropy")
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

    impl = "torch_compile" if task.case.device == "cpu" else "cce"

    def logprob(h: Tensor, w: Tensor) -> Tensor:
        return -linear_cross_entropy(h, w, task.ignored(), impl=impl, reduction="none").float()

    return _from_logprob(task, logprob)


def _from_logprob(task: Task, logprob: Callable[[Tensor, Tensor], Tensor]) -> Run:
    def run() -> Tensor:
        logp = logprob(task.hidden, task.weight)
        task.loss(logp).backward()
        return logp.detach()

    return run


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Skipped(f"{package.replace('_', '-')} is not installed")


PEERS: dict[str, Callable[[Task], Run]] = {
    "wavalign torch": lambda task: ours(task, "torch"),
    "wavalign triton": lambda task: ours(task, "triton"),
    "floor": floor,
    "floor in fp32": floor_fp32,
    "wavalign portable": portable,
    "wavalign logprob": ours_logprob,
    "naive": naive,
    "verl torch": verl_torch,
    "verl triton": verl_triton,
    "liger scaled CE": liger_scaled,
    "liger GRPO": liger_grpo,
    "cut-cross-entropy": cut_cross_entropy,
}
NOTES = {
    "wavalign torch": "wavalign_loss, which training calls",
    "wavalign triton": "wavalign_loss, which training calls",
    "wavalign portable": "the same without AMX, AVX-512 and bf16 products",
    "cut-cross-entropy": "no entropy",
    "liger GRPO": "no entropy, no anchor rows, its own loss",
    "wavalign logprob": "logits made twice, for losses of one's own",
}


def truth(case: Case) -> dict[str, Tensor]:
    """logp (T,), dHidden (T, H), dWeight (V, H) in float64 by plain autograd, a few rows at a time."""
    task = Task(case, torch.float64)
    logp = torch.zeros(case.tokens, dtype=torch.float64, device=case.device)
    for rows in task.active.nonzero()[:, 0].split(256):
        logq = torch.log_softmax(task.hidden[rows] @ task.weight.T, -1)
        logp[rows] = logq.gather(1, task.targets[rows, None])[:, 0].detach()
    logp.requires_grad_()
    (slope,) = torch.autograd.grad(task.loss(logp), logp)
    for rows in task.active.nonzero()[:, 0].split(256):
        logq = torch.log_softmax(task.hidden[rows] @ task.weight.T, -1)
        (logq.gather(1, task.targets[rows, None])[:, 0] * slope[rows]).sum().backward()
    assert task.hidden.grad is not None and task.weight.grad is not None
    return {"logp": logp.detach()[task.active], "dHidden": task.hidden.grad, "dWeight": task.weight.grad}
