"""Routed advantages: each modality by its own reward; joint and semantic-only preference are special cases, exactly."""

import math
from collections.abc import Sequence

import pytest
import torch

from wavalign_ext.config import ConfigError, WavAlignConfig
from wavalign_ext.method.advantage import group_advantages
from wavalign_ext.rewards.routing import rewards_by_modality, route_rewards
from wavalign_ext.trainer.estimator import Route, preferred_tokens, wavalign_advantage

TERMS = {"right": {"weight": 3}, "clear": {"weight": 1}, "kind": {"weight": 2}, "shown": {"weight": 0}}
WEIGHTS = {"right": 0.5, "clear": 1 / 6, "kind": 1 / 3, "shown": 0.0}
ROUTES = {"text": ["right"], "speech": ["clear", "kind"]}
GROUPS = ["a", "a", "a", "b", "b", "b"]


def test_a_route_is_the_weighted_mean_of_its_terms() -> None:
    scores: dict[str, float | None] = {"right": 5.0, "clear": 1.0, "kind": 4.0, "shown": None}
    found = route_rewards(scores, WEIGHTS, ROUTES)
    assert found == {"reward_text": 5.0, "reward_speech": pytest.approx(3.0)}
    everything = route_rewards(scores, WEIGHTS, {"speech": ["right", "clear", "kind"]})
    assert everything["reward_speech"] == pytest.approx(0.5 * 5 + 1 / 6 + 4 / 3)
    assert route_rewards(scores | {"kind": None}, WEIGHTS, ROUTES) == {"reward_text": 5.0, "reward_speech": None}
    assert route_rewards(scores, WEIGHTS, {}) == {}


def test_what_has_no_total_leaves_every_route() -> None:
    total = torch.tensor([3.0, math.nan, 4.0])
    infos = [{"reward_speech": 1.0}, {"reward_speech": 2.0}, {"reward_speech": None}]
    found = rewards_by_modality(total, infos, {"speech": ["clear"]})
    torch.testing.assert_close(found["text"], total, equal_nan=True)
    torch.testing.assert_close(found["speech"], torch.tensor([1.0, math.nan, math.nan]), equal_nan=True)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(text, speech, response mask, rewards (N,), others (N,)), with boundaries that are neither, and padding."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 3, (6, 9), generator=generator)
    mask = torch.arange(9) < torch.randint(4, 10, (6, 1), generator=generator)
    rewards, others = (torch.rand(6, generator=generator) * 4 + 1 for _ in range(2))
    rewards[4] = others[4] = math.nan
    return (kinds == 0) & mask, (kinds == 1) & mask, mask.long(), rewards, others


def estimate(preferred: torch.Tensor, routes: Sequence[Route] = ()) -> torch.Tensor:
    _, _, mask, rewards, _ = batch()
    scores = torch.zeros(mask.shape)
    scores[:, 0] = rewards
    with preferred_tokens(preferred, routes):
        return wavalign_advantage(scores, mask, GROUPS)[0]


def test_each_modality_follows_its_own_reward() -> None:
    text, speech, mask, rewards, others = batch()
    found = estimate(text | speech, [(text, rewards), (speech, others)])
    for tokens, own in ((text, rewards), (speech, others)):
        expected = group_advantages(own, GROUPS)[:, None].expand(mask.shape)
        torch.testing.assert_close(found[tokens], expected[tokens], rtol=0, atol=0)
    assert (found[~(text | speech)] == 0).all()
    assert (found[4] == 0).all() and found.isfinite().all()
    assert group_advantages(rewards, GROUPS).ne(group_advantages(others, GROUPS)).sum() >= 4  # they do differ


def test_joint_and_semantic_only_are_special_cases_exactly() -> None:
    text, speech, _, rewards, others = batch()
    joint = estimate(text | speech)
    assert torch.equal(estimate(text | speech, [(text, rewards), (speech, rewards)]), joint)
    assert torch.equal(estimate(text | speech, [(speech, rewards)]), joint)
    semantic = estimate(text)
    assert torch.equal(estimate(text, [(text, rewards), (speech, others)]), semantic)
    assert not torch.equal(estimate(text | speech, [(speech, others)]), joint)


def config(**routes: object) -> WavAlignConfig:
    return WavAlignConfig.from_mapping({"layout": "pocket", "codec": {}, "reward": {"terms": TERMS, "routes": routes}})


def test_routes_are_checked() -> None:
    assert config(text=None, speech=["clear"]).reward.routed == {"speech": ["clear"]}
    assert config(text=None, speech=None).reward.routed == {}
    for routes, message in (
        ({"music": ["clear"]}, "routes.music.*one of text, speech"),
        ({"speech": ["clarity"]}, r"routes.speech=\['clarity'\].*right, clear, kind"),
        ({"speech": ["shown"]}, "positive weight"),
        ({"speech": []}, r"routes.speech=\[\]"),
        ({"text": "right"}, "routes.text='right'.*a list"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**routes)
