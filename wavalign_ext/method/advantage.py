"""Group-relative advantages: how a reward becomes the advantage of a rollout."""

from collections.abc import Hashable, Sequence

import torch

EPSILON = 1e-4


def group_advantages(
    rewards_N: torch.Tensor, groups_N: Sequence[Hashable], kind: str = "grpo", by_std: bool = True
) -> torch.Tensor:
    """A_ig = (r_ig − mean_g r) / (std_g r + ε), population std, ε = 1e-4 (docs/method.md); shape (N,).

    Args:
        kind: ``grpo``, or ``rloo``: r_ig minus the mean of the group's other rewards (arXiv 2402.14740).
        by_std: False leaves out the division of ``grpo`` (Dr. GRPO, arXiv 2503.20783).

    A missing reward (NaN) leaves its group and gets 0; so does a group with fewer than two scored rollouts.
    """
    if len(groups_N) != len(rewards_N):
        raise ValueError(f"{len(rewards_N)} rewards for {len(groups_N)} group ids: give one id per reward")
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups_N):
        if not torch.isnan(rewards_N[row]):
            members.setdefault(group, []).append(row)
    advantages = torch.zeros_like(rewards_N)
    for rows in members.values():
        if len(rows) >= 2:
            rewards_G = rewards_N[rows]
            centred_G = rewards_G - rewards_G.mean()
            if kind == "rloo":
                centred_G = centred_G * len(rows) / (len(rows) - 1)
            elif by_std:
                centred_G = centred_G / (rewards_G.std(correction=0) + EPSILON)
            advantages[rows] = centred_G
    return advantages
