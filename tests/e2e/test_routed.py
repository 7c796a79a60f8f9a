"""Routed advantages in a job: two steps of the recipe, each rollout with a reward per route."""

from pathlib import Path

import pytest
from jobs import Job

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_two_steps(pocket: Path, tmp_path: Path) -> None:
    job = Job(
        tmp_path / "run",
        "+recipe=wavalign_routed",
        "data.train_batch_size=4",
        "data.val_max_samples=4",
        "trainer.total_training_steps=2",
        "trainer.save_freq=-1",
        "trainer.val_before_train=false",
        limit_s=600,
    ).succeed()
    for step in (1, 2):
        metrics, rows = job.metrics[step], job.rollouts(step)
        assert metrics["training/rollout_probs_diff_mean"] < 1e-5
        assert metrics["actor/grad_norm"] > 0 and metrics["actor/pg_loss"] != 0
        assert len(rows) == 16
        for row in rows:
            assert row["reward_text"] == pytest.approx(row["score_semantic"])  # a route of one term is that term
            assert row["reward_speech"] == pytest.approx(row["score_asr_agreement"])
            assert row["score"] == pytest.approx(0.7 * row["score_semantic"] + 0.3 * row["score_asr_agreement"])
