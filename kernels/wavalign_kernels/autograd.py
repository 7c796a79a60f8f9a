"""Routing between autograd and the chunk loop; no arithmetic of its own."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import chunked, matmul
from .chunked import Head, RowStep, Want
from .records import LossInputs, LossParts
from .rows import LossRows, Rows, RowStats, Slopes, loss_parts, scatter


@dataclass(frozen=True)
class Job:
    """Arguments without gradient."""

    rows: Rows
    step: RowStep
    want: Want
    chunk_rows: int | None = None
    entropy: bool = True
    inputs: LossInputs | None = None
    loss: LossRows | None = None


def outside_autocast(method: Callable) -> Callable:
    """For a Function's forward or backward: a surrounding autocast would round the products and sums in it.

    torch.amp's custom_fwd is made for one type of device; the tensors choose it here.
    """

    @functools.wraps(method)
    def call(ctx, *args):
        device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return method(ctx, *args)

    return call


class LinearLogprob(torch.autograd.Function):
    """(hidden, weight, bias) -> (logp, entropy); backward makes the logits again."""

    @staticmethod
    @outside_autocast
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job):
        head = Head(hidden, weight, bias, job.chunk_rows)
        stats = _empty_stats(hidden, job)
        chunked.sweep(head, job.rows, job.step, stats, Want(False, False, False), entropy=job.entropy)
        ctx.job = job
        ctx.save_for_backward(hidden, weight, bias, stats.logp, stats.miss, stats.lse, stats.entropy)
        ctx.set_materialize_grads(False)
        logp = scatter(stats.logp, job.rows.index, len(hidden))
        return logp, scatter(stats.entropy, job.rows.index, len(hidden)) if job.entropy else None

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx, *grads):
        dlogp, dentropy = grads
        hidden, weight, bias, *columns = ctx.saved_tensors
        job, stats = ctx.job, RowStats(*columns)
        if dlogp is None and dentropy is None:
            return None, None, None, None

        def pick(grad):
            return None if grad is None else grad[job.rows.index].to(stats.logp.dtype)

        slope = pick(dlogp)
        slopes = Slopes(torch.zeros_like(stats.logp) if slope is None else slope, pick(dentropy))
        head = Head(hidden, weight, bias, job.chunk_rows)
        return *chunked.sweep(head, job.rows, job.step, stats, job.want, slopes=slopes), None


class FusedLoss(torch.autograd.Function):
    """(hidden, weight, bias) -> loss, logp, entropy; the gradients are made in the forward and handed over once."""

    @staticmethod
    @outside_autocast
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job, keep: Callable):
        head = Head(hidden, weight, bias, job.chunk_rows)
        stats = _empty_stats(hidden, job)
        grads = chunked.sweep(head, job.rows, job.step, stats, job.want, loss=job.loss if job.want else None)
        return _finish_loss(ctx, stats, job, grads, len(hidden), keep)

    @staticmethod
    @outside_autocast
    def backward(ctx, *grads):
        return *_hand_over(ctx, grads[0]), None, None


class LogitsLoss(torch.autograd.Function):
    """logits -> loss, logp, entropy."""

    @staticmethod
    @outside_autocast
    def forward(ctx, logits: Tensor, job: Job, keep: Callable):
        stats = _empty_stats(logits, job)
        assert job.loss is not None
        grad = chunked.sweep_logits(logits, job.rows, job.step, stats, job.loss, bool(job.want), job.chunk_rows)
        return _finish_loss(ctx, stats, job, (grad,), len(logits), keep)

    @staticmethod
    @outside_autocast
    def backward(ctx, *grads):
        return *_hand_over(ctx, grads[0]), None, None


def _empty_stats(like: Tensor, job: Job) -> RowStats:
    wide = torch.empty(0, dtype=matmul.wide_dtype(like.dtype), device=like.device)
    return RowStats.empty(len(job.rows.index), wide)


def _finish_loss(ctx, stats: RowStats, job: Job, grads, length: int, keep: Callable[[LossParts], None]):
    assert job.loss is not None and job.inputs is not None
    loss, parts = loss_parts(stats, job.loss, job.inputs)
    keep(parts)
    ctx.grads = grads
    logp, entropy = (scatter(c, job.rows.index, length) for c in (stats.logp, stats.entropy))
    ctx.mark_non_differentiable(logp, entropy)
    ctx.set_materialize_grads(False)
    return loss, logp, entropy


def _hand_over(ctx, scale: Tensor | None):
    """The stored gradients times the loss's own gradient, in place: a second copy of dW would be the peak."""
    grads, ctx.grads = ctx.grads, None
    if grads is None:
        raise RuntimeError(
            "backward ran twice through wavalign_loss, whose gradients are handed over once; allowed: one backward per "
            "forward; call wavalign_loss again, or use linear_logprob, which can be differentiated repeatedly"
        )
    if scale is None:
        return tuple(None for _ in grads)
    if scale.device.type == "cpu" and scale == 1:  # asking an accelerator would wait for it
        return grads
    return tuple(None if g is None else g.mul_(scale.to(torch.promote_types(g.dtype, torch.float32))) for g in grads)
