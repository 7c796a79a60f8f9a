"""The definition in float64, and PyTorch as one would write it; both from the equations, no code of the package."""

from dataclasses import dataclass

import torch
from torch import Tensor
from wavalign_kernels import ANCHOR, PREFERENCE, LossInputs


@dataclass
class Softmax:
    """log q = log softmax(x / τ), and what is made from it.  # x (A, V)"""

    logq: Tensor  # (A, V)
    logp: Tensor  # (A,)
    one_minus_p: Tensor  # (A,) Σ_{j≠y} q_j
    lse: Tensor  # (A,)
    entropy: Tensor  # (A,)


def softmax(logits: Tensor, targets: Tensor, bias: Tensor | None = None, tau: Tensor | float = 1.0) -> Softmax:
    x = logits.double() + (0.0 if bias is None else bias.double())
    x = x / (tau.double()[:, None] if isinstance(tau, Tensor) else tau)
    top = x.amax(-1, keepdim=True)
    log_total = (x - top).exp().sum(-1, keepdim=True).log()
    logq = x - top - log_total
    q = logq.exp()
    spread = torch.where(q > 0, q * logq, q)  # 0·log 0 = 0, NaN stays
    others = q.scatter(1, targets[:, None], 0.0).sum(-1)
    return Softmax(logq, logq.gather(1, targets[:, None])[:, 0], others, (top + log_total)[:, 0], -spread.sum(-1))


def dlogits(s: Softmax, targets: Tensor, a: Tensor, b: Tensor | None, tau: Tensor | float = 1.0) -> Tensor:
    """Gradient of Σ a·logp + b·H in the logits before the temperature: a·(1[y] − q) − b·q·(log q + H), over τ."""
    q = s.logq.exp()
    d = -a[:, None] * q
    d.scatter_(1, targets[:, None], (a * s.one_minus_p)[:, None])
    if b is not None:
        d -= b[:, None] * torch.where(q > 0, q * (s.logq + s.entropy[:, None]), q)
    return d / (tau.double()[:, None] if isinstance(tau, Tensor) else tau)


def loss(logp: Tensor, entropy: Tensor, x: LossInputs) -> Tensor:
    """The equation of `LossInputs`, position by position in plain Python; logp, entropy (T,).

    Within ±20, as verl has it: beyond, torch.clamp has no gradient.
    """
    preference = anchor = logp.new_zeros(())
    for t in range(len(logp)):
        w = float(x.weights[t])
        if x.kind[t] == ANCHOR:
            anchor = anchor - w * logp[t]
        if x.kind[t] != PREFERENCE:
            continue
        assert x.advantages is not None
        if w > 0:
            advantage = float(x.advantages[t])
            gap = logp[t] - (logp[t].detach() if x.old_logp is None else float(x.old_logp[t]))
            ratio = gap.clamp(-20, 20).exp()
            clipped = ratio.clamp(1 - x.clip_low, 1 + x.clip_high)
            surrogate = min(ratio * advantage, clipped * advantage)
            if advantage < 0:
                surrogate = max(surrogate, x.clip_c * advantage + 0.0 * ratio)
            preference = preference - w * surrogate
        if x.ref_logp is not None and x.kl_weights is not None and x.kl_weights[t] != 0:
            gap = (float(x.ref_logp[t]) - logp[t]).clamp(-20, 20)
            preference = preference + float(x.kl_weights[t]) * (gap.exp() - gap - 1)
        share = w if x.entropy_weights is None else float(x.entropy_weights[t])
        preference = preference - x.entropy_coef * share * entropy[t]
    preference, anchor = preference / x.preference_denominator, anchor / x.anchor_denominator
    return preference + anchor if x.lam is None else x.lam * preference + (1 - x.lam) * anchor


def slopes(s: Softmax, x: LossInputs) -> tuple[Tensor, Tensor]:
    """∂L/∂logp and ∂L/∂H by differentiating the equation."""
    logp, entropy = s.logp.detach().requires_grad_(), s.entropy.detach().requires_grad_()
    value = loss(logp, entropy, x) + 0.0 * (logp.sum() + entropy.sum())
    a, b = torch.autograd.grad(value, (logp, entropy))
    return a, b


def error(got: Tensor, exact: Tensor) -> float:
    """Relative error in the Euclidean norm."""
    got, exact = got.detach().double(), exact.detach().double()
    return float((got - exact).norm() / exact.norm().clamp_min(1e-300))


def plain(logits: Tensor, targets: Tensor, bias: Tensor | None = None, tau: Tensor | float = 1.0):
    """logp and entropy in the dtype of the logits, differentiable: the error that a kernel may not exceed."""
    x = logits if bias is None else logits + bias
    logq = torch.log_softmax(x / (tau[:, None] if isinstance(tau, Tensor) else tau), -1)
    return logq.gather(1, targets[:, None])[:, 0], -(logq.exp() * logq).sum(-1)
