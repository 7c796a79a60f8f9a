"""Routed rewards: some reward terms drive the text tokens, others the speech tokens.

A route's reward is the weighted mean of its terms, as the total is of all terms. λ and verl's own statistics stay with
the total, so that they mean the same in every recipe. Without routes the total drives every preferred token (joint);
with ``preference.tokens=text`` the speech route drives nothing (WavAlign).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from wavalign_ext.config import MODALITIES


def route_rewards(
    scores: Mapping[str, float | None], weights: Mapping[str, float], routes: Mapping[str, Sequence[str]]
) -> dict[str, float | None]:
    """``{"reward_ROUTE": weighted mean of its terms}`` of one answer; None when one of them is missing."""
    found: dict[str, float | None] = {}
    for route, names in routes.items():
        known = [(weights[name], score) for name in names if (score := scores[name]) is not None]
        complete = len(known) == len(names)
        total = sum(weight for weight, _ in known)
        found[f"reward_{route}"] = sum(weight / total * score for weight, score in known) if complete else None
    return found


def rewards_by_modality(
    total_N: torch.Tensor, infos_N: Sequence[Mapping[str, Any]], routes: Mapping[str, Sequence[str]]
) -> dict[str, torch.Tensor]:
    """What drives each modality, (N,); NaN where the total is missing: such a rollout leaves every route.

    Args:
        infos_N: each rollout's reward_extra_info, with the numbers of :func:`route_rewards`.
    """
    rewards = {}
    for modality in MODALITIES:
        own = total_N
        if modality in routes:
            values = [info[f"reward_{modality}"] for info in infos_N]
            own = torch.tensor([math.nan if value is None else value for value in values], dtype=total_N.dtype)
        rewards[modality] = torch.where(torch.isnan(total_N), math.nan, own)
    return rewards
