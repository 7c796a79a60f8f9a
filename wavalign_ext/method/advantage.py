"""Group-relative advantages on the preferred tokens, registered with verl as the estimator ``wavalign``."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_adv_est

EPSILON = 1e-4

# verl hands an estimator rewards, response mask and prompt ids only. The trainer, which runs in the same process and
# keeps the same row order, publishes here where the preference acts.
Route = tuple[torch.Tensor, torch.Tensor]  # tokens (N, T), and the rewards (N,) that drive them
_PREFERRED: ContextVar[tuple[torch.Tensor, Sequence[Route], str]] = ContextVar("preferred_tokens")


@contextmanager
def preferred_tokens(mask_NT: torch.Tensor, routes: Sequence[Route] = (), kind: str = "grpo") -> Iterator[None]:
    """Say, for the estimator called inside, which response tokens take the advantage; bool, shape (N, T).

    Those of a route take it from the route's rewards, the others from the total. ``kind`` is
    :func:`group_advantages`'s.
    """
    token = _PREFERRED.set((mask_NT, routes, kind))
    try:
        yield
    finally:
        _PREFERRED.reset(token)


def group_advantages(
    rewards_N: torch.Tensor, groups_N: Sequence[Hashable], kind: str = "grpo", by_std: bool = True
) -> torch.Tensor:
    """A_ig = (r_ig − mean_g r) / (std_g r + ε), population std, ε = 1e-4 (METHOD.md); shape (N,).

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


@register_adv_est("wavalign")
def wavalign_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: Sequence[Hashable],
    config: Mapping[str, Any] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """verl's estimator interface: (advantages, returns), both (N, T), zero off the preferred tokens.

    ``config`` is verl's ``algorithm`` node, of which ``norm_adv_by_std_in_grpo`` acts.
    """
    try:
        preferred_NT, routes, kind = _PREFERRED.get()
    except LookupError:
        raise RuntimeError(
            "the estimator 'wavalign' needs the modality of every token, which only our trainer knows: "
            "set trainer.v1.trainer_mode=wavalign"
        ) from None
    if preferred_NT.shape != response_mask.shape:
        raise ValueError(
            f"modality mask {tuple(preferred_NT.shape)} and response mask {tuple(response_mask.shape)} differ"
        )
    groups, by_std = list(index), (config or {}).get("norm_adv_by_std_in_grpo", True)
    advantages_NT = group_advantages(token_level_rewards.sum(-1), groups, kind, by_std)[:, None] * preferred_NT
    for tokens_NT, rewards_N in routes:
        own_N = group_advantages(rewards_N, groups, kind, by_std)
        advantages_NT = torch.where(tokens_NT, own_N[:, None] * preferred_NT, advantages_NT)
    advantages_NT = advantages_NT * response_mask
    return advantages_NT, advantages_NT
