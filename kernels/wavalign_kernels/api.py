"""Public functions: checks, choice of implementation, routing."""

import torch
from torch import Tensor

from . import checks, reference
from .autograd import FusedLoss, Job, LinearLogprob, LogitsLoss
from .chunked import RowStep, Want
from .matmul import wide_dtype
from .records import LossInputs, LossOutputs, LossParts
from .rows import active_index, gather_loss, gather_rows


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    active: Tensor | None = None,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    entropy: bool = True,
    impl: str = "auto",
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and entropy of each softmax, without storing [T, V].

        z = (hidden @ weight.T + bias) / temperature;  logp = log_softmax(z)[y];  entropy = −Σ p log p

    Shapes: hidden (..., H), weight (V, H), targets (...) -> logp (...), entropy (...) in fp32 (fp64 for fp64), both
    differentiable in hidden, weight and bias, zero at inactive positions. entropy=False returns None for it.
    `active` (...) bool; `temperature` positive, a number, () or (...). `chunk_rows` trades scratch for speed.
    Work: 2·A·H·V forward, 6·A·H·V backward, A = active positions.
    """
    shape, flat = targets.shape, hidden.reshape(-1, hidden.shape[-1])
    if hidden.shape[:-1] != shape:
        raise ValueError(
            f"targets have shape {tuple(shape)}, hidden {tuple(hidden.shape)}; allowed: hidden's leading dimensions "
            f"{tuple(hidden.shape[:-1])}; shift or pad the targets to one per position"
        )
    checks.check_head(flat, weight, bias)
    targets, length = targets.reshape(-1), len(flat)
    checks.check_chunk_rows(chunk_rows)
    checks.check_column("targets", targets, length, flat.device, "integer")
    if active is not None:
        active = _flatten(active, shape)
        checks.check_column("active", active, length, flat.device, "mask")
    if isinstance(temperature, Tensor) and temperature.dim():
        temperature = _flatten(temperature, shape)
    checks.check_temperature(temperature, length, flat.device)
    chosen = checks.pick_impl(impl, flat.device, flat.dtype)
    checks.check_values(targets, active, weight.shape[0], temperature)
    if chosen == "reference":
        logp, ent = reference.linear_logprob(flat, weight, targets, active, bias, temperature)
    else:
        index = torch.arange(length, device=flat.device) if active is None else active_index(active)
        rows = gather_rows(index, targets, temperature, wide_dtype(flat.dtype))
        job = Job(rows, _row_step(chosen), _wanted(flat, weight, bias), chunk_rows, entropy)
        logp, ent = LinearLogprob.apply(flat, weight, bias, job)
    return logp.view(shape), ent.view(shape) if entropy else None


def wavalign_loss(
    hidden: Tensor,
    weight: Tensor,
    inputs: LossInputs,
    *,
    bias: Tensor | None = None,
    impl: str = "auto",
    chunk_rows: int | None = None,
) -> LossOutputs:
    """The mixed loss of `LossInputs` from the hidden states of a packed stream, without storing [T, V].

    Shapes: hidden (T, H), weight (V, H), bias (V,), columns of inputs (T,) -> loss (), logp (T,), entropy (T,).
    The gradient of the loss is known inside the forward: 6·A·H·V in all, backward only scales. One backward per call.
    """
    checks.check_head(hidden, weight, bias)
    chosen = _checked(inputs, hidden, weight.shape[0], impl, chunk_rows)
    if chosen == "reference":
        return reference.wavalign_loss(hidden, weight, bias, inputs)
    kept: list[LossParts] = []
    job = _loss_job(inputs, hidden, chosen, _wanted(hidden, weight, bias), chunk_rows)
    loss, logp, entropy = FusedLoss.apply(hidden, weight, bias, job, kept.append)
    return LossOutputs(loss, logp, entropy, kept[0])


def logits_loss(
    logits: Tensor, inputs: LossInputs, *, impl: str = "auto", chunk_rows: int | None = None
) -> LossOutputs:
    """`wavalign_loss` from logits (T, V), for models whose head cannot be reached.

    The gradient is zero at inactive rows. Memory: the logits, their gradient, and one chunk in fp32.
    """
    checks.check_logits(logits)
    chosen = _checked(inputs, logits, logits.shape[1], impl, chunk_rows)
    if chosen == "reference":
        return reference.loss_of_logits(logits.to(wide_dtype(logits.dtype)), inputs)
    kept: list[LossParts] = []
    job = _loss_job(inputs, logits, chosen, _wanted(logits, None, None), chunk_rows)
    loss, logp, entropy = LogitsLoss.apply(logits, job, kept.append)
    return LossOutputs(loss, logp, entropy, kept[0])


def _loss_job(x: LossInputs, like: Tensor, chosen: str, want: Want, chunk_rows: int | None) -> Job:
    index, dtype = active_index(x.kind), wide_dtype(like.dtype)
    rows, loss = gather_rows(index, x.targets, x.temperature, dtype), gather_loss(x, index, dtype)
    return Job(rows, _row_step(chosen), want, chunk_rows, inputs=x, loss=loss)


def _checked(x: LossInputs, like: Tensor, vocab: int, impl: str, chunk_rows: int | None) -> str:
    """The implementation, once the record fits the stream."""
    checks.check_chunk_rows(chunk_rows)
    checks.check_inputs(x, len(like), like.device)
    chosen = checks.pick_impl(impl, like.device, like.dtype)
    checks.check_values(x.targets, None, vocab, x.temperature, x)
    return chosen


def _wanted(hidden: Tensor, weight: Tensor | None, bias: Tensor | None) -> Want:
    grad = torch.is_grad_enabled()
    return Want(*(grad and t is not None and t.requires_grad for t in (hidden, weight, bias)))


def _row_step(chosen: str) -> RowStep:
    if chosen == "triton":
        from .row_kernel import step  # imports triton

        return step
    from .torch_rows import step

    return step


def _flatten(column: Tensor, shape: torch.Size) -> Tensor:
    """(...) -> (T,); what does not fit is left for the check that names it."""
    return column.reshape(-1) if column.shape == shape else column
