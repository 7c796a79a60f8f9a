"""The public functions as operators of PyTorch: torch.compile puts one call into its graph and looks no further.

Inside are the same checks and the same pass, when the graph runs. Gradients that a loss's forward makes are results of
its operator, kept for its backward; that scales copies, for a compiler may not be handed memory to overwrite.
Everything but the active rows' number, which nobody knows beforehand, is in the results' shapes: columns are (T,).
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from . import checks, passes
from .autograd import outside_autocast
from .chunked import Head, NeedsGrad
from .matmul import wide_dtype
from .passes import Options
from .records import LossInputs, LossOutputs, LossParts
from .rows import RowStats, scatter

RESULTS = 4
"""Results of a loss that come before its gradients: loss (), logp (T,), entropy (T,), terms (5,)."""

INPUTS, PARTS = (tuple(f.name for f in fields(record)) for record in (LossInputs, LossParts))


def applies(impl: str) -> bool:
    """Whether a call is being compiled; the definition is plain autograd, and compiled as such."""
    return torch.compiler.is_compiling() and impl != "reference"


def linear_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, columns: tuple, entropy: bool, options: Options
) -> tuple[Tensor, Tensor]:
    """Columns: targets, active or None, temperature. As `autograd.LinearLogprob`, the entropy 0 if not asked for."""
    targets, active, temperature = columns
    tau, number = (temperature, 1.0) if isinstance(temperature, Tensor) else (None, float(temperature))
    more = options.index, options.check, options.impl, options.chunk_rows
    logp, _, _, ent = _logprob(hidden, weight, bias, targets, active, tau, number, entropy, *more)
    return logp, ent


def wavalign_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, x: LossInputs, options: Options) -> LossOutputs:
    """As `api.wavalign_loss`."""
    want = passes.wanted(hidden, weight, bias)
    more = options.index, options.check, options.impl, options.chunk_rows
    return _outputs(_loss(hidden, weight, bias, *_flat(x), [want.hidden, want.weight, want.bias], *more))


def logits_loss(logits: Tensor, x: LossInputs, options: Options) -> LossOutputs:
    """As `api.logits_loss`."""
    more = options.index, options.check, options.impl, options.chunk_rows
    return _outputs(_logits_loss(logits, *_flat(x), passes.wanted(logits).hidden, *more))


@torch.library.custom_op("wavalign_kernels::linear_logprob", mutates_args=())
@outside_autocast
def _logprob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    active: Tensor | None,
    tau: Tensor | None,
    number: float,
    entropy: bool,
    index: Tensor | None,
    check: bool,
    impl: str,
    chunk_rows: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = Options(impl, chunk_rows, index, check)
    temperature = number if tau is None else tau
    job = passes.logprob_job(hidden, weight, bias, targets, active, temperature, entropy, options)
    assert job is not None
    stats = passes.logprob(hidden, weight, bias, job)
    if not entropy:
        stats.entropy.zero_()
    columns = (stats.logp, stats.one_minus_p, stats.lse, stats.entropy)
    logp, one_minus_p, lse, ent = (scatter(c, job.rows.index, len(hidden)) for c in columns)
    return logp, one_minus_p, lse, ent


@_logprob.register_fake
def _(hidden, *_):
    logp, one_minus_p, lse, ent = (hidden.new_empty(len(hidden), dtype=wide_dtype(hidden.dtype)) for _ in range(4))
    return logp, one_minus_p, lse, ent


@torch.library.custom_op("wavalign_kernels::linear_logprob_backward", mutates_args=())
@outside_autocast
def _logprob_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    active: Tensor | None,
    tau: Tensor | None,
    number: float,
    index: Tensor | None,
    impl: str,
    chunk_rows: int | None,
    stats: list[Tensor],  # (T,) each
    dlogp: Tensor | None,
    dentropy: Tensor | None,
    want: list[bool],
) -> list[Tensor]:
    options, temperature = Options(impl, chunk_rows, index, check=False), number if tau is None else tau
    job = passes.logprob_job(hidden, weight, bias, targets, active, temperature, dentropy is not None, options)
    assert job is not None
    kept, head = RowStats(*(c[job.rows.index] for c in stats)), Head(hidden, weight, bias, chunk_rows)
    return _made(passes.logprob_grads(head, job, kept, NeedsGrad(*want), dlogp, dentropy))


@_logprob_backward.register_fake
def _(hidden, weight, bias, *rest):
    return _empty((hidden, weight, bias), rest[-1])


def _logprob_setup(ctx, inputs, output) -> None:
    hidden, weight, bias, targets, active, tau, number, entropy, index, _, impl, chunk_rows = inputs
    ctx.save_for_backward(hidden, weight, bias, targets, active, tau, index, *output)
    ctx.arguments = number, entropy, impl, chunk_rows
    ctx.mark_non_differentiable(*output[1:3], *([] if entropy else output[3:]))
    ctx.set_materialize_grads(False)


def _logprob_grads(ctx, dlogp, _one_minus_p, _lse, dentropy):
    hidden, weight, bias, targets, active, tau, index, *stats = ctx.saved_tensors
    number, entropy, impl, chunk_rows = ctx.arguments
    want = list(ctx.needs_input_grad[:3])
    dentropy = dentropy if entropy else None
    if dlogp is None and dentropy is None:
        return (None,) * 12
    columns = targets, active, tau, number, index, impl, chunk_rows
    made = iter(_logprob_backward(hidden, weight, bias, *columns, stats, dlogp, dentropy, want))
    return *(next(made) if wish else None for wish in want), *(None,) * 9


_logprob.register_autograd(_logprob_grads, setup_context=_logprob_setup)


@torch.library.custom_op("wavalign_kernels::wavalign_loss", mutates_args=())
@outside_autocast
def _loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tensors: list[Tensor],
    names: str,
    numbers: list[float],
    number_names: str,
    want: list[bool],
    index: Tensor | None,
    check: bool,
    impl: str,
    chunk_rows: int | None,
) -> list[Tensor]:
    checks.check_head(hidden, weight, bias)
    x = _record(tensors, names, numbers, number_names)
    job = passes.loss_job(x, hidden, len(weight), Options(impl, chunk_rows, index, check))
    assert job is not None
    stats, loss, parts, grads = passes.fused_loss(hidden, weight, bias, job, NeedsGrad(*want))
    return _results(stats, loss, parts, job, len(hidden)) + _made(grads)


@_loss.register_fake
def _(hidden, weight, bias, _tensors, _names, _numbers, _number_names, want, *_):
    return _empty_results(hidden) + _empty((hidden, weight, bias), want)


@torch.library.custom_op("wavalign_kernels::logits_loss", mutates_args=())
@outside_autocast
def _logits_loss(
    logits: Tensor,
    tensors: list[Tensor],
    names: str,
    numbers: list[float],
    number_names: str,
    want: bool,
    index: Tensor | None,
    check: bool,
    impl: str,
    chunk_rows: int | None,
) -> list[Tensor]:
    checks.check_logits(logits)
    x = _record(tensors, names, numbers, number_names)
    job = passes.loss_job(x, logits, logits.shape[1], Options(impl, chunk_rows, index, check))
    assert job is not None
    stats, loss, parts, grads = passes.logits_loss(logits, job, want)
    return _results(stats, loss, parts, job, len(logits)) + _made(grads)


@_logits_loss.register_fake
def _(logits, _tensors, _names, _numbers, _number_names, want, *_):
    return _empty_results(logits) + _empty((logits,), [want])


def _loss_setup(ctx, inputs, output) -> None:
    """A loss's inputs: those that have a gradient, the record's tensors, and eight more."""
    *_, tensors, _names, _numbers, _number_names, want, _index, _check, _impl, _chunk_rows = inputs
    ctx.want, ctx.columns = [want] if isinstance(want, bool) else want, len(tensors)
    ctx.save_for_backward(*output[RESULTS:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _loss_grads(ctx, grads):
    """The stored gradients times the loss's own."""
    made, scale = iter(ctx.saved_tensors), grads[0]
    own = [next(made) * scale if wish and scale is not None else None for wish in ctx.want]
    return *own, [None] * ctx.columns, *(None,) * 8


for _operator in (_loss, _logits_loss):
    _operator.register_autograd(_loss_grads, setup_context=_loss_setup)


def _flat(x: LossInputs) -> tuple[list[Tensor], str, list[float], str]:
    """An operator takes lists of tensors and of numbers, each with its names; what is None is in neither."""
    given = {name: getattr(x, name) for name in INPUTS}
    tensors = {name: v for name, v in given.items() if isinstance(v, Tensor)}
    numbers = {name: float(v) for name, v in given.items() if v is not None and name not in tensors}
    return list(tensors.values()), " ".join(tensors), list(numbers.values()), " ".join(numbers)


def _record(tensors: list[Tensor], names: str, numbers: list[float], number_names: str) -> LossInputs:
    columns: dict[str, Any] = dict(zip(names.split(), tensors, strict=True))
    columns |= zip(number_names.split(), numbers, strict=True)
    return LossInputs(**columns)


def _results(stats: RowStats, loss: Tensor, parts: LossParts, job: passes.NonTensorArgs, length: int) -> list[Tensor]:
    logp, entropy = (scatter(c, job.rows.index, length) for c in (stats.logp, stats.entropy))
    return [loss, logp, entropy, torch.stack([getattr(parts, name) for name in PARTS])]


def _empty_results(like: Tensor) -> list[Tensor]:
    length = len(like)
    return [like.new_empty(shape, dtype=wide_dtype(like.dtype)) for shape in ((), (length,), (length,), (5,))]


def _outputs(results: list[Tensor]) -> LossOutputs:
    loss, logp, entropy, parts = results[:RESULTS]
    return LossOutputs(loss, logp, entropy, LossParts(*parts.unbind()))


def _made(grads: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [g for g in grads if g is not None]


def _empty(inputs: tuple[Tensor | None, ...], want: list[bool]) -> list[Tensor]:
    return [torch.empty_like(t) for t, wish in zip(inputs, want, strict=True) if wish and t is not None]
