"""The embedded model that hears, through stock verl, Ray, FSDP2 and vLLM: questions as recordings."""

from pathlib import Path

import pytest
from jobs import Job

pytestmark = [pytest.mark.e2e, pytest.mark.slow]  # the encoder and the model behind it take minutes to build
STEPS = 2


def test_it_trains_on_what_it_hears(pocket: Path, tmp_path: Path) -> None:
    run = Job(
        tmp_path / "run",
        "+recipe=wavalign_ears",
        "data.train_batch_size=8",
        "data.val_max_samples=8",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
        f"trainer.total_training_steps={STEPS}",
        "trainer.save_freq=-1",
        limit_s=1500,
    ).succeed()
    for step in range(1, STEPS + 1):
        metrics = run.metrics[step]
        assert metrics["training/rollout_probs_diff_mean"] < 1e-5
        assert metrics["wavalign/rows_anchor"] == 8 and metrics["actor/grad_norm"] > 0
    assert any(row.get("wav") and row["question"] for row in run.rollouts(1))
