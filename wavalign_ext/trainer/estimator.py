"""Advantages on the preferred tokens, registered with verl as the estimator ``wavalign``."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_adv_est

from wavalign_ext.method.advantage import group_advantages

# verl hands an estimator rewards, response mask and prompt ids only. The trainer, which runs in the same process and
# keeps the same row order, publishes here where the preference acts, and how it makes advantages.
Route = tuple[torch.Tensor, torch.Tensor]  # tokens (N, T), and the rewards (N,) that drive them
Make = Callable[[torch.Tensor, Sequence[Hashable], bool], torch.Tensor]  # rewards (N,), groups, by_std: (N, T)
_PREFERRED: ContextVar[tuple[torch.Tensor, Make]] = ContextVar("preferred_tokens")


def preferred_tokens(mask_NT: torch.Tensor, routes: Sequence[Route] = (), kind: str = "grpo") -> Any:
    """Say, for the estimator called inside, which response tokens take the advantage; bool, shape (N, T).

    Those of a route take it from the route's rewards, the others from the total. ``kind`` is
    :func:`group_advantages`'s.
    """

    def make(rewards_N: torch.Tensor, groups: Sequence[Hashable], by_std: bool) -> torch.Tensor:
        advantages_NT = group_advantages(rewards_N, groups, kind, by_std)[:, None] * mask_NT
        for tokens_NT, own_rewards_N in routes:
            own_N = group_advantages(own_rewards_N, groups, kind, by_std)
            advantages_NT = torch.where(tokens_NT, own_N[:, None] * mask_NT, advantages_NT)
        return advantages_NT

    return _published(mask_NT, make)


def given_advantages(mask_NT: torch.Tensor, advantages_N: torch.Tensor) -> Any:
    """Say, for the estimator called inside, which tokens take which advantage: of an objective over pairs, (N,)."""
    return _published(mask_NT, lambda *_: advantages_N[:, None] * mask_NT)


@contextmanager
def _published(mask_NT: torch.Tensor, make: Make) -> Iterator[None]:
    token = _PREFERRED.set((mask_NT, make))
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
        preferred_NT, make = _PREFERRED.get()
    except LookupError:
        raise RuntimeError(
            "the estimator 'wavalign' needs the modality of every token, which only our trainer knows: "
            "set trainer.v1.trainer_mode=wavalign"
        ) from None
    if preferred_NT.shape != response_mask.shape:
        raise ValueError(
            f"modality mask {tuple(preferred_NT.shape)} and response mask {tuple(response_mask.shape)} differ"
        )
    by_std = (config or {}).get("norm_adv_by_std_in_grpo", True)
    advantages_NT = make(token_level_rewards.sum(-1), list(index), by_std) * response_mask
    return advantages_NT, advantages_NT
