"""The definition: plain autograd over the whole [T, V], for small shapes. Shares no code with the fast paths.

Its forward is protected from a surrounding autocast; being plain autograd, its backward is not.
"""

import torch
from torch import Tensor

from .records import ANCHOR, LOG_RATIO_LIMIT, PREFERENCE, LossInputs, LossOutputs, LossParts


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden @ weight.T + bias in fp32, or fp64 where the inputs are.  # (T, H), (V, H), (V,) -> (T, V)"""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden.to(wide) @ weight.to(wide).T
    return logits if bias is None else logits + bias.to(wide)


def _where_active(active: Tensor, column: Tensor) -> Tensor:
    """Other rows become 0, so that what they hold, a NaN included, reaches no gradient.  # (T,), (T, ...)"""
    return torch.where(active.view(-1, *[1] * (column.dim() - 1)), column, torch.zeros((), dtype=column.dtype))


def logprob_of_logits(logits: Tensor, targets: Tensor, active: Tensor | None, temperature) -> tuple[Tensor, Tensor]:
    """log softmax(z/τ)[y] and H = −Σ p log p, zero where inactive.  # (T, V), (T,) -> (T,), (T,)"""
    active = torch.ones_like(targets, dtype=torch.bool) if active is None else active
    tau = temperature.to(logits.device, logits.dtype) if isinstance(temperature, Tensor) else temperature
    if isinstance(tau, Tensor) and tau.dim():
        tau = torch.where(active, tau, 1.0)[:, None]
    logq = torch.log_softmax(_where_active(active, logits) / tau, -1)
    logp = logq.gather(1, torch.where(active, targets, 0).long()[:, None])[:, 0]
    entropy = -(logq.exp() * torch.where(logq == -torch.inf, 0.0, logq)).sum(-1)  # 0·log 0 = 0
    return torch.where(active, logp, 0.0), torch.where(active, entropy, 0.0)


def linear_logprob(hidden, weight, targets, active, bias, temperature) -> tuple[Tensor, Tensor]:
    """See `wavalign_kernels.linear_logprob`."""
    hidden = hidden if active is None else _where_active(active, hidden)
    return logprob_of_logits(logits_of(hidden, weight, bias), targets, active, temperature)


def wavalign_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, x: LossInputs) -> LossOutputs:
    """See `wavalign_kernels.wavalign_loss`."""
    active = (x.kind == PREFERENCE) | (x.kind == ANCHOR)
    return loss_of_logits(logits_of(_where_active(active, hidden), weight, bias), x)


def loss_of_logits(logits: Tensor, x: LossInputs) -> LossOutputs:
    """The equation of `LossInputs`, line by line."""
    preference, anchor = x.kind == PREFERENCE, x.kind == ANCHOR
    logp, entropy = logprob_of_logits(logits, x.targets, preference | anchor, x.temperature)
    dtype = logp.dtype
    zero = torch.zeros_like(logp)
    weights = x.weights.to(dtype)

    def limited(gap, mask):
        # Elsewhere old and ref mean nothing: they must not reach a product.
        return torch.where(mask, gap, zero).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    def total(mask, term, denominator):
        return torch.where(mask, term, zero).sum() / denominator

    surrogate = zero
    if x.advantages is not None:
        old = logp.detach() if x.old_logp is None else x.old_logp.to(dtype)
        ratio = limited(logp - old, preference & (weights > 0)).exp()
        adv = x.advantages.to(dtype)
        clipped = ratio.clamp(1 - x.clip_low, 1 + x.clip_high)
        surrogate = torch.minimum(ratio * adv, clipped * adv)
        surrogate = -weights * torch.where(adv < 0, torch.maximum(surrogate, x.clip_c * adv), surrogate)
    kl = zero
    if x.ref_logp is not None and x.kl_weights is not None:
        gap = limited(x.ref_logp.to(dtype) - logp, preference & (x.kl_weights > 0))
        kl = x.kl_weights.to(dtype) * (gap.exp() - gap - 1)
    share = weights if x.entropy_weights is None else x.entropy_weights.to(dtype)
    bonus = -x.entropy_coef * share * entropy
    sums = [total(preference, term, x.preference_denominator) for term in (surrogate, kl, bonus)]
    pref_loss, anchor_loss = sums[0] + sums[1] + sums[2], total(anchor, -weights * logp, x.anchor_denominator)
    loss = pref_loss + anchor_loss if x.lam is None else x.lam * pref_loss + (1 - x.lam) * anchor_loss
    parts = LossParts(pref_loss.detach(), anchor_loss.detach(), *(s.detach() for s in sums))
    return LossOutputs(loss, logp.detach(), entropy.detach(), parts)
