"""Options of verl's that a run may take, through the whole loop: validation alone, and dynamic sampling."""

import math
from pathlib import Path

import pytest
from jobs import SMALL, Job

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_run_that_only_validates_ends_there(pocket: Path, tmp_path: Path) -> None:
    job = Job(tmp_path / "run", *SMALL, "trainer.val_only=true").succeed()
    assert job.metrics.keys() == {0}
    assert job.metrics[0]["val-anchor/nll_speech"] > 0
    assert any(name.startswith("val-core/") for name in job.metrics[0])
    assert (job.folder / "validation" / "0.jsonl").is_file() and not (job.folder / "rollouts").exists()
    assert not list(job.folder.glob("global_step_*"))


def test_prompts_without_a_signal_are_replaced_though_scores_are_missing(pocket: Path, tmp_path: Path) -> None:
    job = Job(
        tmp_path / "run",
        "+recipe=wavalign",
        "data.train_batch_size=4",
        "+wavalign.reward.terms.flaky={weight: 1, type: 'flaky:flaky'}",
        "wavalign.reward.terms.semantic.weight=0",
        "wavalign.seeded_sampling=false",
        "algorithm.filter_groups.enable=true",
        "algorithm.filter_groups.metric=score_flaky",
        "trainer.total_training_steps=2",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
    ).succeed()
    evicted = 0
    for step, metrics in job.metrics.items():
        rows = job.rollouts(step)
        assert len(rows) == 16 and metrics["wavalign/rows_anchor"] == 4
        groups: dict[str, list[float]] = {}
        for row in rows:
            groups.setdefault(row["key"].split("_")[0], []).extend([] if row["score"] is None else [row["score"]])
        assert all(len(scores) < 2 or len(set(scores)) == 2 for scores in groups.values())
        missing = sum(row["score"] is None for row in rows)
        assert metrics["wavalign/rewards_missing"] == missing and math.isfinite(metrics["actor/grad_norm"])
        evicted += metrics.get("training/filter_groups/evicted_samples", 0)
    assert evicted > 0
