"""The combined loss: λ · preference + (1 − λ) · anchor (docs/method.md; paper: arXiv 2604.14932).

:func:`combined_loss` is the definition, on plain tensors; ``integration/verl_loss.py`` hands it to verl's workers.
"""

from dataclasses import dataclass

import torch

from wavalign_ext.method.surrogates import SURROGATES

# verl's guard against overflow in exp(new − old), which also bounds a k3 term (core_algos.py).
LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True)
class LossCoefficients:
    """What of the loss does not change between steps. ``mode`` is a name in :mod:`wavalign_ext.method.surrogates`."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_text: float = 1e-3
    kl_speech: float = 1e-3
    entropy: float = 0.0
    clip_c: float = 3.0
    mode: str = "vanilla"


@dataclass(frozen=True)
class LossInputs:
    """Per response token, shape (R, T); weights as :class:`wavalign_ext.method.token_weights.TokenWeights` has them.

    ``is_anchor`` has shape (R, 1). ``reference`` and ``entropy`` are None where the run has no such term; ``old_logp``
    where the policy is the one that sampled: then ρ = 1, with the gradient of ρ.
    """

    logp: torch.Tensor
    old_logp: torch.Tensor | None
    advantage: torch.Tensor
    preference_weight: torch.Tensor
    anchor_weight: torch.Tensor
    text_weight: torch.Tensor
    speech_weight: torch.Tensor
    is_anchor: torch.Tensor
    reference: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


@dataclass(frozen=True)
class LossOutputs:
    """``loss`` is differentiable; ``parts`` are detached scalars, each a sum over the rows given."""

    loss: torch.Tensor
    parts: dict[str, torch.Tensor]


def combined_loss(inputs: LossInputs, lam: float, coefficients: LossCoefficients) -> LossOutputs:
    """The loss of some rows of a mini-batch; the mini-batch's loss is the sum over its rows.

    L        = λ (L_pref + β_text KL_text + β_speech KL_speech − c_H H) + (1 − λ) L_anchor
    L_pref   = Σ w · −min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A),      ρ = exp(logp − old_logp), or another surrogate
    KL       = Σ share · (exp(ref − logp) − (ref − logp) − 1)           per modality, on rollouts
    L_anchor = Σ v · −logp
    """
    i, c = inputs, coefficients
    on_rollouts = (~i.is_anchor).to(i.logp.dtype)
    text, speech = i.text_weight * on_rollouts, i.speech_weight * on_rollouts

    old_logp = i.logp.detach() if i.old_logp is None else i.old_logp
    log_ratio = torch.clamp(i.logp - old_logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    # Where the weight is 0 the old log-probs mean nothing (anchor rows have none): their ratio must reach no product.
    log_ratio = torch.where(i.preference_weight > 0, log_ratio, 0.0)
    surrogate, clipping = SURROGATES[c.mode](log_ratio, i.advantage, i.preference_weight, c)
    policy = -(i.preference_weight * surrogate).sum()
    anchor = -(i.anchor_weight * i.logp).sum()

    parts = {
        "pg_loss": policy,
        **{name: (i.preference_weight * mask).sum() for name, mask in clipping.items()},
        "anchor_nll": anchor,
        "anchor_nll_text": -((i.text_weight - text) * i.logp).sum(),
        "anchor_nll_speech": -((i.speech_weight - speech) * i.logp).sum(),
        "ppo_kl": -(i.preference_weight * log_ratio).sum(),
    }
    preference = policy
    if i.reference is not None:
        gap = torch.clamp(i.reference - i.logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        gap = torch.where(text + speech > 0, gap, 0.0)
        k3 = gap.exp() - gap - 1
        # Only where it counts: without a coefficient, a modality's log-probs may not have been computed at all.
        for name, weight, coefficient in (("kl_text", text, c.kl_text), ("kl_speech", speech, c.kl_speech)):
            if coefficient > 0:
                parts[name] = (weight * k3).sum()
                preference = preference + coefficient * parts[name]
    if i.entropy is not None:
        entropy = (i.preference_weight * i.entropy).sum()
        preference = preference - c.entropy * entropy
        parts |= {"entropy_text": (text * i.entropy).sum(), "entropy_speech": (speech * i.entropy).sum()}
    loss = lam * preference + (1 - lam) * anchor
    parts |= {"preference_loss": preference, "total_loss": loss}
    return LossOutputs(loss, {name: value.detach() for name, value in parts.items()})


ROW_FIELDS = ("preference_weight", "anchor_weight", "text_weight", "speech_weight")
