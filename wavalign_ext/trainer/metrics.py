"""Named numbers by modality, from what a step's rollouts looked like before the update."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class RolloutBatch:
    """A step's rollouts, right-padded: N rows, T response tokens. Optional streams are None where not computed.

    ``masks``: by modality, bool (N, T). ``referenced``: the modalities whose tokens ``reference`` is of.
    """

    masks: Mapping[str, torch.Tensor]
    rewards: torch.Tensor
    groups: Sequence[Hashable]
    ended: torch.Tensor
    entropy: torch.Tensor | None = None
    logp: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    referenced: Collection[str] = ("text", "speech")


def rollout_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Token counts, entropy, log-prob and KL by modality; shares of rows and groups that the method must know about.

    KL is the k3 estimate of the reference against the sampling policy, mean over tokens.
    """
    scored = ~torch.isnan(batch.rewards)
    metrics = {
        "wavalign/rewards_missing_share": 1 - scored.float().mean().item(),
        "wavalign/rollouts_truncated": 1 - batch.ended.float().mean().item(),
        "wavalign/groups_degenerate": _degenerate_share(batch.rewards, batch.groups),
    }
    for name, mask in batch.masks.items():
        count = mask.sum(-1).float()
        metrics[f"wavalign/tokens_{name}"] = count.mean().item()
        metrics[f"wavalign/rollouts_without_{name}"] = (count == 0).float().mean().item()
        if not mask.any():
            continue
        if batch.entropy is not None:
            metrics[f"wavalign/entropy_{name}"] = batch.entropy[mask].mean().item()
        if batch.logp is not None:
            metrics[f"wavalign/logp_{name}"] = batch.logp[mask].mean().item()
        if batch.logp is not None and batch.reference is not None and name in batch.referenced:
            gap = (batch.reference - batch.logp)[mask]
            metrics[f"wavalign/kl_{name}"] = (gap.exp() - gap - 1).mean().item()
    return metrics


def reward_metrics(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each reward term by name, from what the reward manager says of a step's rollouts (``reward_extra_info``).

    ``reward/TERM`` is the mean of the scores that are there and ``reward_missing/TERM`` the share that is not;
    ``reward/route_MODALITY`` is the mean of what drives a modality that has rewards of its own, and
    ``reward_notes/NOTE`` the mean of what terms found out on the way: a word error rate, a judge's retries.
    """
    metrics: dict[str, float] = {}
    for column in dict.fromkeys(name for answer in answers for name in answer):
        values = [answer.get(column) for answer in answers]
        known = [float(value) for value in values if isinstance(value, int | float) and not np.isnan(value)]
        if column.startswith("score_"):
            term = column.removeprefix("score_")
            metrics[f"reward_missing/{term}"] = 1 - len(known) / len(values)
            metrics |= {f"reward/{term}": float(np.mean(known))} if known else {}
        elif known:
            route = column.startswith("reward_")
            name = f"reward/route_{column.removeprefix('reward_')}" if route else f"reward_notes/{column}"
            metrics[name] = float(np.mean(known))
    return metrics


def _degenerate_share(rewards_N: torch.Tensor, groups_N: Sequence[Hashable]) -> float:
    """Share of prompts whose scored rewards do not differ, so that no rollout of theirs has an advantage."""
    by_group: dict[Hashable, list[float]] = {}
    for reward, group in zip(rewards_N.tolist(), groups_N, strict=True):
        by_group.setdefault(group, []).append(reward)
    flat = [np.nanmax(r) == np.nanmin(r) if not np.isnan(r).all() else True for r in map(np.asarray, by_group.values())]
    return float(np.mean(flat))
