"""What a step reports about its rewards: each term by name, what is missing, and what terms found out."""

import math

import pytest
import torch

from wavalign_ext.trainer.metrics import RolloutBatch, reward_metrics, rollout_metrics


def test_terms_are_reported_by_name_and_missing_scores_are_a_share_not_a_number() -> None:
    answers = [
        {"score_semantic": 5.0, "score_judge": None, "wer": 0.5, "text": "seven", "judge_retries": 3.0},
        {"score_semantic": 2.0, "score_judge": 4.0, "wer": math.nan, "text": "eight", "judge_retries": 0.0},
        {"score_semantic": 2.0, "score_judge": None, "wer": None, "missing": "judge: HTTP 500", "reward_text": 2.0},
    ]
    assert reward_metrics(answers) == {
        "reward/semantic": 3.0,
        "reward_missing/semantic": 0.0,
        "reward/judge": 4.0,
        "reward_missing/judge": pytest.approx(2 / 3),
        "reward/route_text": 2.0,
        "reward_notes/wer": 0.5,
        "reward_notes/judge_retries": 1.5,
    }


def test_a_term_that_scored_nothing_has_a_share_and_no_mean() -> None:
    assert reward_metrics([{"score_judge": None}] * 2) == {"reward_missing/judge": 1.0}


@pytest.mark.parametrize(
    ("rewards", "share"), [([1.0, 2.0, 3.0, 5.0], 0.0), ([1.0, math.nan, 3.0, math.nan], 0.5), ([math.nan] * 4, 1.0)]
)
def test_the_share_of_rollouts_without_a_reward(rewards: list[float], share: float) -> None:
    masks = {"text": torch.zeros(4, 3).bool(), "speech": torch.ones(4, 3).bool()}
    batch = RolloutBatch(masks, torch.tensor(rewards), ["a", "a", "b", "b"], torch.ones(4).bool())
    assert rollout_metrics(batch)["wavalign/rewards_missing_share"] == share
