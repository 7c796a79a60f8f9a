"""A model with two streams through stock verl, Ray, FSDP2 and vLLM: words and speech side by side, then resumed."""

import json
import math
from pathlib import Path

import pytest
import soundfile
from jobs import Job, assert_same_step, resume_from

pytestmark = [pytest.mark.e2e, pytest.mark.slow]  # the two-stream model takes 4 minutes to build
SMALL = [
    "+recipe=wavalign_parallel",
    "data.train_batch_size=8",
    "data.val_max_samples=8",
    "trainer.val_before_train=false",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",  # or the first step would change nothing
]
STEPS, RESUMED_AFTER = 2, 1


@pytest.fixture(scope="module")
def job(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two steps; the two-stream model is built before them when it is missing (about 4 minutes)."""
    more = [f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={RESUMED_AFTER}"]
    return Job(tmp_path_factory.mktemp("parallel") / "run", *SMALL, *more, limit_s=1500).succeed()


def test_two_streams_train(job: Job) -> None:
    for step in range(1, STEPS + 1):
        metrics = job.metrics[step]
        assert metrics["training/rollout_probs_diff_max"] < 1e-5
        assert metrics["wavalign/rows_anchor"] == 8 and metrics["actor/grad_norm"] > 0
        assert 3 < metrics["wavalign/tokens_text"] < 15 and metrics["wavalign/tokens_speech"] > 15
        assert metrics["actor/anchor_nll_text"] > 0 and metrics["actor/anchor_nll_speech"] > 0
        assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, int | float))
    assert job.metrics[STEPS]["wavalign/kl_text"] > 0  # the second weights were sampled with, and scored
    assert job.metrics[STEPS]["val-anchor/nll_speech"] > 0


def test_both_streams_can_be_read_and_heard(job: Job) -> None:
    rows = job.rollouts(1)
    assert len(rows) == 8 * 4
    played = [row for row in rows if row.get("wav")]
    assert all(row["question"] for row in played)
    assert sum(bool(row["text"]) for row in played) > len(played) / 2  # a sampled answer may say nothing
    wave, rate = soundfile.read(job.folder / "rollouts" / played[0]["wav"])
    assert rate == 16000 and abs(wave).max() > 0.01
    validation = (job.folder / "validation" / f"{STEPS}.jsonl").read_text().splitlines()
    assert len(validation) == 8 and any(json.loads(line).get("wav") for line in validation)


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(job: Job, tmp_path: Path) -> None:
    more = [*resume_from(job.folder / f"global_step_{RESUMED_AFTER}"), f"trainer.total_training_steps={STEPS}"]
    resumed = Job(tmp_path / "resumed", *SMALL, *more, limit_s=900).succeed()
    assert_same_step(resumed, job, STEPS)
