"""One call: its arguments checked and gathered into a job, and the pass over the job.

What `autograd` and `operators` have in common; neither knows more than how gradients reach PyTorch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import checks, chunked, matmul
from .chunked import Grads, Head, NeedsGrad, RowStep
from .records import LossInputs, LossParts
from .rows import LossRows, RowGrads, Rows, RowStats, active_index, gather_loss, gather_rows, loss_parts, mask_of


@dataclass(frozen=True)
class Options:
    """How a call is made; see the public functions."""

    impl: str = "auto"
    chunk_rows: int | None = None
    index: Tensor | None = None  # (A,)
    check: bool = True


@dataclass(frozen=True)
class NonTensorArgs:
    """Arguments without gradient."""

    rows: Rows
    step: RowStep
    chunk_rows: int | None
    entropy: bool = True
    inputs: LossInputs | None = None
    loss: LossRows | None = None

    def empty_stats(self, like: Tensor) -> RowStats:
        wide = torch.empty(0, dtype=matmul.wide_dtype(like.dtype), device=like.device)
        return RowStats.empty(len(self.rows.index), wide)


def wanted(hidden: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> NeedsGrad:
    """Where a gradient may be asked for."""
    grad = torch.is_grad_enabled()
    return NeedsGrad(*(grad and t is not None and t.requires_grad for t in (hidden, weight, bias)))


def logprob_job(
    hidden: Tensor,  # (T, H)
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,  # (T,) as all that follow
    active: Tensor | None,
    temperature: float | Tensor,
    entropy: bool,
    options: Options,
) -> NonTensorArgs | None:
    """None: the definition is asked for."""
    length, device = len(hidden), hidden.device
    checks.check_head(hidden, weight, bias)
    checks.check_chunk_rows(options.chunk_rows)
    checks.check_column("targets", targets, length, device, "integer")
    if active is not None:
        checks.check_column("active", active, length, device, "mask")
    if active is not None and options.index is not None:
        raise ValueError("active and index are both given; allowed: one of them; leave active out")
    checks.check_temperature(temperature, length, device)
    chosen = checks.pick_impl(options.impl, device, hidden.dtype)
    checks.check_index(options.index, device)
    if options.check:
        asked = active if options.index is None else mask_of(options.index, length)
        checks.check_values(targets, asked, len(weight), temperature, index=options.index)
    if chosen == "reference":
        return None
    index = options.index
    if index is None:
        index = torch.arange(length, device=device) if active is None else active_index(active)
    rows = gather_rows(index, targets, temperature, matmul.wide_dtype(hidden.dtype))
    return NonTensorArgs(rows, _row_step(chosen), options.chunk_rows, entropy)


def loss_job(x: LossInputs, like: Tensor, vocab: int, options: Options) -> NonTensorArgs | None:
    """The job of `x` over hidden states or logits, `like`; None: the definition is asked for."""
    checks.check_chunk_rows(options.chunk_rows)
    checks.check_inputs(x, len(like), like.device)
    chosen = checks.pick_impl(options.impl, like.device, like.dtype)
    checks.check_index(options.index, like.device)
    if options.check:
        checks.check_values(x.targets, None, vocab, x.temperature, x, index=options.index)
    if chosen == "reference":
        return None
    index, dtype = active_index(x.kind) if options.index is None else options.index, matmul.wide_dtype(like.dtype)
    rows, loss = gather_rows(index, x.targets, x.temperature, dtype), gather_loss(x, index, dtype)
    return NonTensorArgs(rows, _row_step(chosen), options.chunk_rows, inputs=x, loss=loss)


def logprob(hidden: Tensor, weight: Tensor, bias: Tensor | None, job: NonTensorArgs) -> RowStats:
    """The statistics of every active row."""
    stats, head = job.empty_stats(hidden), Head(hidden, weight, bias, job.chunk_rows)
    chunked.run_chunks(head, job.rows, job.step, stats, NeedsGrad(False, False, False), entropy=job.entropy)
    return stats


def logprob_grads(
    head: Head, job: NonTensorArgs, stats: RowStats, want: NeedsGrad, dlogp: Tensor | None, dentropy: Tensor | None
) -> Grads:
    """From the gradients of log-probs and entropies (T,); makes the logits again."""

    def pick(grad: Tensor | None) -> Tensor | None:
        return None if grad is None else grad[job.rows.index].to(stats.logp.dtype)

    slope = pick(dlogp)
    slopes = RowGrads(torch.zeros_like(stats.logp) if slope is None else slope, pick(dentropy))
    return chunked.run_chunks(head, job.rows, job.step, stats, want, slopes=slopes)


def fused_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, job: NonTensorArgs, want: NeedsGrad
) -> tuple[RowStats, Tensor, LossParts, Grads]:
    """Statistics, the loss, its terms and its gradients."""
    stats, head = job.empty_stats(hidden), Head(hidden, weight, bias, job.chunk_rows)
    grads = chunked.run_chunks(head, job.rows, job.step, stats, want, loss=job.loss if want else None)
    return stats, *_finish(stats, job), grads


def logits_loss(
    logits: Tensor, job: NonTensorArgs, want: bool
) -> tuple[RowStats, Tensor, LossParts, tuple[Tensor | None]]:
    """As `fused_loss`."""
    stats = job.empty_stats(logits)
    assert job.loss is not None
    grad = chunked.run_logit_chunks(logits, job.rows, job.step, stats, job.loss, want, job.chunk_rows)
    return stats, *_finish(stats, job), (grad,)


def _finish(stats: RowStats, job: NonTensorArgs) -> tuple[Tensor, LossParts]:
    assert job.loss is not None and job.inputs is not None
    return loss_parts(stats, job.loss, job.inputs)


def _row_step(chosen: str) -> RowStep:
    if chosen == "triton":
        from .triton_rows import step  # imports triton

        return step
    from .torch_rows import step

    return step
