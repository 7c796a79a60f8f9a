"""Advantages on the preferred tokens, registered with verl as the estimator ``wavalign``."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_adv_est

from wavalign_ext.method.advantage import group_advantages

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
