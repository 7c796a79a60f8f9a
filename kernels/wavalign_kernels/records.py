"""Records that cross the package's boundary."""

import math
from dataclasses import dataclass

from torch import Tensor

NONE, PREFERENCE, ANCHOR = 0, 1, 2
"""What a position contributes: nothing, a preference term or an anchor term."""

LOG_RATIO_LIMIT = 20.0
"""Bound of a log-ratio and of a k3 term's gap, as verl has it (core_algos.py); beyond it their gradient is 0."""

NO_DUAL_CLIP = 2 * math.exp(LOG_RATIO_LIMIT)
"""A c that no ratio reaches."""


@dataclass(frozen=True)
class LossInputs:
    """Everything but the model that the loss of a packed stream of T positions needs.

    preference t:  w_t·(−min(ρ_t·A_t, clip(ρ_t, 1−ε_lo, 1+ε_hi)·A_t)) + κ_t·k3_t − c·e_t·H_t
    anchor t:      w_t·(−logp_t)
    where A_t < 0 the surrogate is at least c·A_t (dual clip, arXiv 1912.09729)
    ρ_t = exp([logp_t − old_t]),  k3_t = exp(g_t) − g_t − 1,  g_t = [ref_t − logp_t],  [x] = x within ±20

    L = λ·Σ preference / D_pref + (1 − λ)·Σ anchor / D_anchor

    w, κ and e may already hold token, row and batch means, so a KL term with its own mask and denominator is a
    column κ. A preference position with w_t = 0 and κ_t > 0 (a speech KL, say) is still active; a position that
    needs nothing must be marked NONE, for the kind alone decides what is computed. Where w is 0, old may hold
    anything; where κ is 0, ref may. All columns are constants: no gradient reaches them.
    """

    kind: Tensor  # (T,) integer: NONE, PREFERENCE or ANCHOR
    targets: Tensor  # (T,) int64, in [0, V) wherever kind is not NONE
    weights: Tensor  # (T,) w ≥ 0
    advantages: Tensor | None = None  # (T,) A; needed once a position is PREFERENCE
    old_logp: Tensor | None = None  # (T,) None: on policy, ρ = 1 with the gradient of ρ
    ref_logp: Tensor | None = None  # (T,) None: no KL term
    kl_weights: Tensor | None = None  # (T,) κ, ≥ 0, given together with ref_logp
    entropy_weights: Tensor | None = None  # (T,) e ≥ 0; None: e = w
    entropy_coef: float = 0.0  # c
    clip_low: float = 0.2  # ε_lo
    clip_high: float = 0.2  # ε_hi
    clip_c: float = NO_DUAL_CLIP  # c
    lam: float | Tensor | None = None  # λ in [0, 1], a number or (); None: both sums enter with factor 1
    preference_denominator: float | Tensor = 1.0  # D_pref > 0, a number or ()
    anchor_denominator: float | Tensor = 1.0  # D_anchor > 0, a number or ()
    temperature: float | Tensor = 1.0  # > 0, a number, () or (T,): logits are divided by it


@dataclass(frozen=True)
class LossParts:
    """The terms, each over its own denominator, before λ mixes them; scalars without gradient."""

    preference: Tensor  # surrogate + kl + entropy
    anchor: Tensor
    surrogate: Tensor
    kl: Tensor
    entropy: Tensor  # −c·Σ e·H / D_pref


@dataclass(frozen=True)
class LossOutputs:
    """The loss, and what metrics are made from."""

    loss: Tensor  # () differentiable
    logp: Tensor  # (T,) log-probability of the target, 0 where inactive, no gradient
    entropy: Tensor  # (T,) entropy of the tempered softmax, 0 where inactive, no gradient
    parts: LossParts
