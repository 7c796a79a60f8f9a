"""Objectives over pairs of answers to one prompt: DPO and its relatives (docs/preference.md).

    S(y)   = Σ_t w_t · logp_t                over the preferred tokens; divided by Σ_t w_t with ``length_normalized``
    gap    = (S(chosen) − S(rejected)) − the same of the reference policy       without the latter: ``reference_free``
    loss   = mean over pairs of ℓ(gap)

The gradient of ℓ(gap) is ℓ'(gap) · (∇S(chosen) − ∇S(rejected)): a policy gradient with the advantage −ℓ'(gap) on the
chosen row and ℓ'(gap) on the rejected one, at ρ = 1. So a pair is two rows of the update like any others, and the fused
loss, anchors, λ and ranks serve. It is exact where the gaps are those of the weights that are updated.

Shapes: N rows, T response tokens, P pairs.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from wavalign_ext.config import PairsConfig


def dpo(gap_P: Tensor, c: PairsConfig) -> tuple[Tensor, Tensor]:
    """−log σ(β gap − γ), and with label smoothing ε of the other order as well; arXiv 2305.18290, 2405.14734 for γ."""
    logits, other = c.beta * gap_P - c.target_margin, c.label_smoothing
    loss = -(1 - other) * logsigmoid(logits) - other * logsigmoid(-logits)
    return loss, c.beta * ((1 - other) * torch.sigmoid(-logits) - other * torch.sigmoid(logits))


def ipo(gap_P: Tensor, c: PairsConfig) -> tuple[Tensor, Tensor]:
    """(gap − 1 / 2β)²: a gap to reach, and to go back to (arXiv 2310.12036)."""
    beyond = gap_P - 1 / (2 * c.beta)
    return beyond.square(), -2 * beyond


PAIR_LOSSES: dict[str, Callable[[Tensor, PairsConfig], tuple[Tensor, Tensor]]] = {"dpo": dpo, "ipo": ipo}
"""By ``wavalign.preference.objective``: gaps (P,) to losses (P,) and their slopes −dℓ/dgap (P,)."""


@dataclass(frozen=True)
class Pairs:
    """Row numbers of the two answers of each pair, and how many groups gave none, by the reason."""

    chosen: list[int]
    rejected: list[int]
    left_out: dict[str, int] = field(default_factory=dict)

    def numbers(self, rows: int) -> Tensor:
        """The pair that each of ``rows`` rows belongs to, int64; −1 for a row of none."""
        numbers = torch.full((rows,), -1, dtype=torch.int64)
        numbers[self.chosen] = numbers[self.rejected] = torch.arange(len(self.chosen))
        return numbers


@dataclass(frozen=True)
class PairTerms:
    """Of each pair, (P,) in float64: gap, loss, and slope, the size of the advantage on its rows."""

    gap: Tensor
    loss: Tensor
    slope: Tensor

    def advantages(self, pairs: Pairs, rows: int) -> Tensor:
        """The advantage of each of ``rows`` rows, float64; 0 for a row of no pair."""
        advantages = torch.zeros(rows, dtype=torch.float64)
        advantages[pairs.chosen], advantages[pairs.rejected] = self.slope, -self.slope
        return advantages


def best_and_worst(
    scores: Sequence[float], groups: Sequence[Hashable], usable: Sequence[bool], min_gap: float
) -> Pairs:
    """The best against the worst answer of each group, where they differ by ``min_gap`` and at all.

    Args:
        scores: per row; NaN where it is missing. The first of equals is taken.
        usable: False for a row that the objective has no token of.

    Groups left out are counted: ``unscored`` (fewer than two rows with a score and a token), ``tied``, ``below_gap``.
    """
    members: dict[Hashable, list[int]] = {}
    for row, (score, group, use) in enumerate(zip(scores, groups, usable, strict=True)):
        known = members.setdefault(group, [])
        if use and score == score:
            known.append(row)
    chosen, rejected, left_out = [], [], {"unscored": 0, "tied": 0, "below_gap": 0}
    for rows in members.values():
        if len(rows) < 2:
            left_out["unscored"] += 1
            continue
        best, worst = max(rows, key=lambda r: scores[r]), min(rows, key=lambda r: scores[r])
        gap = scores[best] - scores[worst]
        if gap == 0 or gap < min_gap:
            left_out["tied" if gap == 0 else "below_gap"] += 1
            continue
        chosen.append(best)
        rejected.append(worst)
    return Pairs(chosen, rejected, left_out)


def pair_terms(
    pairs: Pairs, weight_NT: Tensor, logp_NT: Tensor, reference_NT: Tensor | None, name: str, config: PairsConfig
) -> PairTerms:
    """Gaps, losses and slopes under the weights that made ``logp_NT``.

    Args:
        weight_NT: w_t of the preferred tokens, 0 elsewhere.
        reference_NT: log-probs of the reference policy. None only with ``reference_free``, which does not read it.

    Raises:
        ValueError: without the reference that the objective compares with.
    """
    if reference_NT is None and not config.reference_free:
        raise ValueError(f"objective {name!r} compares with a reference policy: give its log-probs, or reference_free")
    streams = [logp_NT] if config.reference_free or reference_NT is None else [logp_NT, reference_NT]
    gaps = []
    for stream in streams:
        scores = _row_scores(stream, weight_NT, config.length_normalized)
        gaps.append(scores[pairs.chosen] - scores[pairs.rejected])
    gap = gaps[0] - gaps[1] if len(gaps) == 2 else gaps[0]
    loss, slope = PAIR_LOSSES[name](gap, config)
    return PairTerms(gap, loss, slope)


def pair_weights(weight_RT: Tensor, pair_R: Tensor, length_normalized: bool) -> Tensor:
    """Weights (R, T) with which a sum over the tokens of a mini-batch is the mean over its pairs.

    Args:
        weight_RT: w_t of the preferred tokens, 0 elsewhere.
        pair_R: the pair of each row, −1 for none (:meth:`Pairs.numbers`).
    """
    paired = pair_R >= 0
    weight_RT = weight_RT * paired[:, None]
    if length_normalized:
        weight_RT = weight_RT / _or_one(weight_RT.sum(-1, keepdim=True))
    return weight_RT / max(len(pair_R[paired].unique()), 1)


def _row_scores(logp_NT: Tensor, weight_NT: Tensor, length_normalized: bool) -> Tensor:
    """S(y), (N,) in float64. Where a weight is 0 a log-prob may never have been computed."""
    weight_NT = weight_NT.double()
    total = (weight_NT * torch.where(weight_NT > 0, logp_NT.double(), 0.0)).sum(-1)
    return total / _or_one(weight_NT.sum(-1)) if length_normalized else total


def _or_one(total: Tensor) -> Tensor:
    return torch.where(total > 0, total, 1.0)
