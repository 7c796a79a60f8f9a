"""Offline DPO through stock verl: pairs of the data, no rollout engine, checkpoints as ever."""

import math
from pathlib import Path

import pytest
from jobs import Job

pytestmark = pytest.mark.e2e
SMALL = ["+recipe=dpo_text_anchor", "data.train_batch_size=8", "data.val_max_samples=8", "trainer.save_freq=2"]


def test_pairs_of_the_data_train(pocket: Path, tmp_path: Path) -> None:
    rate = ["actor_rollout_ref.actor.optim.lr=1e-4", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"]
    job = Job(tmp_path / "run", *SMALL, *rate, "trainer.total_training_steps=2", "trainer.test_freq=2").succeed()
    first, last = job.metrics[1], job.metrics[2]
    assert first["wavalign/pair_margin"] == pytest.approx(0, abs=1e-6)  # the policy is its own reference yet
    assert last["wavalign/pair_margin"] != 0 and last["actor/grad_norm"] > 0
    assert all(
        math.isfinite(last[name]) for name in ("val-pairs/margin", "val-pairs/accuracy", "val-anchor/nll_speech")
    )
    assert "EngineCore" not in job.output and (job.folder / "global_step_2" / "wavalign.json").is_file()
