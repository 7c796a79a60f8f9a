"""Offline DPO through stock verl: pairs of the data, no rollout engine, checkpoints and resume as ever."""

import math
from pathlib import Path

import pytest
from jobs import SIZE, Job, resume_from

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
STEPS, RESUMED_AFTER = 2, 1
RATE = ["actor_rollout_ref.actor.optim.lr=1e-4", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"]


def start(folder: Path, *overrides: str) -> Job:
    steps = [f"trainer.total_training_steps={STEPS}", f"trainer.test_freq={STEPS}", "trainer.val_before_train=false"]
    return Job(folder, "+recipe=dpo_text_anchor", *SIZE, *steps, *RATE, *overrides).succeed()


@pytest.fixture(scope="module")
def job(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return start(tmp_path_factory.mktemp("pairs") / "run", f"trainer.save_freq={RESUMED_AFTER}")


def test_pairs_of_the_data_train(job: Job) -> None:
    first, last = job.metrics[1], job.metrics[STEPS]
    assert first["wavalign/pair_margin"] == pytest.approx(0, abs=1e-6)  # the policy is its own reference yet
    assert last["wavalign/pair_margin"] != 0 and last["actor/grad_norm"] > 0
    assert all(
        math.isfinite(last[name]) for name in ("val-pairs/margin", "val-pairs/accuracy", "val-anchor/nll_speech")
    )
    assert "EngineCore" not in job.output and (job.folder / f"global_step_{STEPS}" / "wavalign.json").is_file()


def test_a_resumed_run_goes_on_with_the_same_pairs_and_reference(job: Job, tmp_path: Path) -> None:
    """The reference is the model that the first run began with, read from its cache, and not the resumed weights."""
    resumed = start(tmp_path / "resumed", *resume_from(job.folder / f"global_step_{RESUMED_AFTER}"))
    assert "the reference policy scores 0 answers" in resumed.output
    assert sorted(resumed.metrics) == [STEPS]
    after, whole = resumed.metrics[STEPS], job.metrics[STEPS]
    for name in ("wavalign/pair_margin", "wavalign/pair_loss", "actor/grad_norm", "val-pairs/margin"):
        assert after[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-7), name


def test_pairs_of_rollouts_train(pocket: Path, tmp_path: Path) -> None:
    more = ["data.train_batch_size=8", "data.val_max_samples=8", "trainer.total_training_steps=2", *RATE]
    job = Job(tmp_path / "online", "+recipe=online_dpo", *more, "trainer.save_freq=-1").succeed()
    for step in (1, 2):
        metrics = job.metrics[step]
        assert metrics["training/rollout_probs_diff_mean"] < 1e-5
        assert 0 < metrics["wavalign/pairs"] <= 8 and metrics["actor/grad_norm"] > 0
    assert job.metrics[1]["wavalign/pair_margin"] == pytest.approx(0, abs=1e-6)
    assert job.metrics[2]["wavalign/pair_margin"] != 0
