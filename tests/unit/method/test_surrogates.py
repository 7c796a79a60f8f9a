"""The surrogates against verl's functions of the same names, where every token is preferred; the rest is in parity."""

import math

import pytest
import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import FSDPActorConfig

from wavalign_ext.method.advantage import group_advantages
from wavalign_ext.method.loss import LossCoefficients
from wavalign_ext.method.surrogates import SURROGATES
from wavalign_ext.trainer.estimator import preferred_tokens, wavalign_advantage

ROWS, TOKENS = 6, 9


def batch(spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(new log-probs, old ones, advantages, mask), float64, rows of different lengths."""
    generator = torch.Generator().manual_seed(1)
    old = -torch.rand(ROWS, TOKENS, dtype=torch.float64, generator=generator)
    new = old + spread * torch.randn(ROWS, TOKENS, dtype=torch.float64, generator=generator)
    advantage = torch.randn(ROWS, 1, dtype=torch.float64, generator=generator).expand(ROWS, TOKENS)
    mask = torch.arange(TOKENS) < torch.randint(3, TOKENS + 1, (ROWS, 1), generator=generator)
    return new.requires_grad_(), old, advantage, mask


def ours(mode: str, new: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weight = mask.double() / mask.sum(-1, keepdim=True) / ROWS
    log_ratio = torch.where(weight > 0, new - old, 0.0)
    objective, masks = SURROGATES[mode](log_ratio, advantage, weight, LossCoefficients(0.2, 0.28, clip_c=1.5))
    assert all(0 <= (weight * m).sum() <= 1 for m in masks.values())
    return -(weight * objective).sum()


@pytest.mark.parametrize("mode", SURROGATES)
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
def test_they_are_verl_s(mode: str, spread: float) -> None:
    new, old, advantage, mask = batch(spread)
    config = FSDPActorConfig(
        rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=1.5
    )
    theirs, _ = get_policy_loss_fn(mode)(
        old_log_prob=old,
        log_prob=new,
        advantages=advantage,
        response_mask=mask.double(),
        loss_agg_mode="seq-mean-token-mean",
        config=config,
    )
    found = ours(mode, new, old, advantage, mask)
    assert found.item() == pytest.approx(theirs.item(), abs=1e-7)  # verl adds 1e-8 to a row's length
    pair = [torch.autograd.grad(loss, new, retain_graph=True)[0] for loss in (found, theirs)]
    torch.testing.assert_close(*pair, rtol=0, atol=1e-7)


def test_on_policy_they_are_one() -> None:
    """One update per batch: the paper's loss, whichever mode and whatever the clipping."""
    found = {}
    for mode in SURROGATES:
        new, old, advantage, mask = batch(0.0)
        loss = ours(mode, new, old, advantage, mask)
        found[mode] = (loss, torch.autograd.grad(loss, new)[0])
    for mode in SURROGATES:
        torch.testing.assert_close(found[mode], found["vanilla"], rtol=0, atol=1e-15)


def test_the_dual_clip_acts_beyond_c_alone() -> None:
    ratio = torch.tensor([[0.5, 1.0, 2.9, 3.1, 50.0]], dtype=torch.float64)
    advantage, weight = torch.full_like(ratio, -1.0), torch.full_like(ratio, 0.2)
    objective, masks = SURROGATES["vanilla"](ratio.log(), advantage, weight, LossCoefficients())
    assert objective.tolist() == [pytest.approx([-0.8, -1.0, -2.9, -3.0, -3.0])]
    assert masks["pg_clipfrac_lower"].tolist() == [[False, False, False, True, True]]
    positive, _ = SURROGATES["vanilla"](ratio.log(), -advantage, weight, LossCoefficients())
    assert positive.max() == pytest.approx(1.2)


# --- advantages ---------------------------------------------------------------------------------------------------

REWARDS, GROUPS = [1.0, 2.0, 5.0, math.nan, 3.0, 3.0, 4.0], ["a", "a", "a", "a", "b", "b", "c"]
EXPECTED = {
    ("rloo", True): [1 - 3.5, 2 - 3.0, 5 - 1.5, 0, 0, 0, 0],
    ("rloo", False): [1 - 3.5, 2 - 3.0, 5 - 1.5, 0, 0, 0, 0],
    ("grpo", False): [1 - 8 / 3, 2 - 8 / 3, 5 - 8 / 3, 0, 0, 0, 0],
}


@pytest.mark.parametrize(("kind", "by_std"), EXPECTED)
def test_advantages_by_hand(kind: str, by_std: bool) -> None:
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    expected = torch.tensor(EXPECTED[kind, by_std], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards, GROUPS, kind, by_std), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "by_std"), EXPECTED)
def test_verl_s_algorithm_node_reaches_the_estimator(kind: str, by_std: bool) -> None:
    scores = torch.zeros(7, 2, dtype=torch.float64)
    scores[:, 0] = torch.tensor(REWARDS, dtype=torch.float64)
    mask = torch.ones(7, 2, dtype=torch.long)
    route = torch.tensor([[True, False]] * 7), scores[:, 0]
    with preferred_tokens(mask.bool(), [route], kind):
        found, _ = wavalign_advantage(scores, mask, GROUPS, config={"norm_adv_by_std_in_grpo": by_std})
    expected = torch.tensor(EXPECTED[kind, by_std], dtype=torch.float64)[:, None].expand(7, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
