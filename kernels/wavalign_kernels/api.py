"""Public functions: checks, choice of implementation, routing."""

import torch
from torch import Tensor

from . import checks, operators, reference
from .autograd import FusedLoss, LinearLogprob, LogitsLoss
from .matmul import wide_dtype
from .passes import Options, logprob_job, loss_job, wanted
from .records import LossInputs, LossOutputs, LossParts
from .rows import mask_of


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    active: Tensor | None = None,
    index: Tensor | None = None,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    entropy: bool = True,
    impl: str = "auto",
    chunk_rows: int | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and entropy of each softmax, without storing [T, V].

        z = (hidden @ weight.T + bias) / temperature;  logp = log_softmax(z)[y];  entropy = −Σ p log p

    Shapes: hidden (..., H), weight (V, H), targets (...) -> logp (...), entropy (...) in fp32 (fp64 for fp64), both
    differentiable in hidden, weight and bias, zero at inactive positions. entropy=False returns None for it.
    `active` (...) bool; `temperature` positive, a number, () or (...). `chunk_rows` trades scratch for speed.
    `index`, of flattened positions and in the place of `active`, and `check` are as for `wavalign_loss`.
    Work: 2·A·H·V forward, 6·A·H·V backward, A = active positions.
    """
    shape, flat = targets.shape, hidden.reshape(-1, hidden.shape[-1])
    if hidden.shape[:-1] != shape:
        raise ValueError(
            f"targets have shape {tuple(shape)}, hidden {tuple(hidden.shape)}; allowed: hidden's leading dimensions "
            f"{tuple(hidden.shape[:-1])}; shift or pad the targets to one per position"
        )
    targets = targets.reshape(-1)
    active = None if active is None else _flatten(active, shape)
    if isinstance(temperature, Tensor) and temperature.dim():
        temperature = _flatten(temperature, shape)
    options = Options(impl, chunk_rows, index, check)
    if operators.applies(impl):
        columns = targets, active, temperature
        logp, ent = operators.linear_logprob(flat, weight, bias, columns, entropy, options)
    elif job := logprob_job(flat, weight, bias, targets, active, temperature, entropy, options):
        logp, ent = LinearLogprob.apply(flat, weight, bias, job, wanted(flat, weight, bias))
    else:
        active = active if index is None else mask_of(index, len(flat))
        logp, ent = reference.linear_logprob(flat, weight, targets, active, bias, temperature)
    return logp.view(shape), ent.view(shape) if entropy else None


def wavalign_loss(
    hidden: Tensor,
    weight: Tensor,
    inputs: LossInputs,
    *,
    index: Tensor | None = None,
    bias: Tensor | None = None,
    impl: str = "auto",
    chunk_rows: int | None = None,
    check: bool = True,
) -> LossOutputs:
    """The mixed loss of `LossInputs` from the hidden states of a packed stream, without storing [T, V].

    Shapes: hidden (T, H), weight (V, H), bias (V,), columns of inputs (T,) -> loss (), logp (T,), entropy (T,).
    The gradient of the loss is known inside the forward: 6·A·H·V in all, backward only scales. One backward per call.

    An accelerator is waited for twice, unless the caller spares it both: `index` (A,) int64, each active position once,
    where it is known; `check=False` leaves out the look at what tensors hold, and a wrong value then does anything.
    """
    options = Options(impl, chunk_rows, index, check)
    if operators.applies(impl):
        return operators.wavalign_loss(hidden, weight, bias, inputs, options)
    checks.check_head(hidden, weight, bias)
    job = loss_job(inputs, hidden, len(weight), options)
    if job is None:
        return reference.wavalign_loss(hidden, weight, bias, inputs)
    kept: list[LossParts] = []
    loss, logp, entropy = FusedLoss.apply(hidden, weight, bias, job, wanted(hidden, weight, bias), kept.append)
    return LossOutputs(loss, logp, entropy, kept[0])


def logits_loss(
    logits: Tensor,
    inputs: LossInputs,
    *,
    index: Tensor | None = None,
    impl: str = "auto",
    chunk_rows: int | None = None,
    check: bool = True,
) -> LossOutputs:
    """`wavalign_loss` from logits (T, V), for models whose head cannot be reached.

    The gradient is zero at inactive rows. Memory: the logits, their gradient, and one chunk in fp32.
    """
    options = Options(impl, chunk_rows, index, check)
    if operators.applies(impl):
        return operators.logits_loss(logits, inputs, options)
    checks.check_logits(logits)
    job = loss_job(inputs, logits, logits.shape[1], options)
    if job is None:
        return reference.loss_of_logits(logits.to(wide_dtype(logits.dtype)), inputs)
    kept: list[LossParts] = []
    loss, logp, entropy = LogitsLoss.apply(logits, job, wanted(logits), kept.append)
    return LossOutputs(loss, logp, entropy, kept[0])


def _flatten(column: Tensor, shape: torch.Size) -> Tensor:
    """(...) -> (T,); what does not fit is left for the check that names it."""
    return column.reshape(-1) if column.shape == shape else column
