"""Routing between autograd and the pass; no arithmetic of its own. `operators` is the same for torch.compile."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import passes
from .chunked import Head, NeedsGrad
from .passes import NonTensorArgs
from .records import LossParts
from .rows import RowStats, scatter


def outside_autocast(method: Callable) -> Callable:
    """For a Function's forward or backward: a surrounding autocast would round the products and sums in it.

    torch.amp's custom_fwd is made for one type of device; the tensors choose it here.
    """

    @functools.wraps(method)
    def call(*args):
        device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return method(*args)

    return call


class LinearLogprob(torch.autograd.Function):
    """(hidden, weight, bias) -> (logp, entropy); backward makes the logits again."""

    @staticmethod
    @outside_autocast
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: NonTensorArgs, want: NeedsGrad):
        stats = passes.logprob(hidden, weight, bias, job)
        ctx.job, ctx.want = job, want
        ctx.save_for_backward(hidden, weight, bias, stats.logp, stats.one_minus_p, stats.lse, stats.entropy)
        ctx.set_materialize_grads(False)
        logp = scatter(stats.logp, job.rows.index, len(hidden))
        return logp, scatter(stats.entropy, job.rows.index, len(hidden)) if job.entropy else None

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx, *grads):
        if all(g is None for g in grads):
            return None, None, None, None, None
        hidden, weight, bias, *columns = ctx.saved_tensors
        head = Head(hidden, weight, bias, ctx.job.chunk_rows)
        return *passes.logprob_grads(head, ctx.job, RowStats(*columns), ctx.want, *grads), None, None


class FusedLoss(torch.autograd.Function):
    """(hidden, weight, bias) -> loss, logp, entropy; the gradients are made in the forward and handed over once."""

    @staticmethod
    @outside_autocast
    def forward(
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: NonTensorArgs, want: NeedsGrad, keep: Callable
    ):
        return _keep(ctx, keep, job, len(hidden), *passes.fused_loss(hidden, weight, bias, job, want))

    @staticmethod
    @outside_autocast
    def backward(ctx, *grads):
        return *_hand_over(ctx, grads[0]), None, None, None


class LogitsLoss(torch.autograd.Function):
    """logits -> loss, logp, entropy."""

    @staticmethod
    @outside_autocast
    def forward(ctx, logits: Tensor, job: NonTensorArgs, want: NeedsGrad, keep: Callable):
        return _keep(ctx, keep, job, len(logits), *passes.logits_loss(logits, job, bool(want)))

    @staticmethod
    @outside_autocast
    def backward(ctx, *grads):
        return *_hand_over(ctx, grads[0]), None, None, None


def _keep(ctx, keep: Callable[[LossParts], None], job: NonTensorArgs, length: int, stats: RowStats, loss, parts, grads):
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
