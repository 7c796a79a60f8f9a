"""The main job, through stock verl, Ray, FSDP2 and vLLM: a short run, and its continuation from a checkpoint."""

import json
import math
from pathlib import Path

import pytest
import soundfile
from jobs import SMALL, Job, assert_same_step, resume_from

from wavalign_ext.integration.processes import LASTING

pytestmark = pytest.mark.e2e
STEPS, RESUMED_AFTER, MEMORY_GB = 3, 2, 16


def start(folder: Path, *overrides: str) -> Job:
    common = [*SMALL, f"trainer.total_training_steps={STEPS}", "trainer.val_before_train=false"]
    return Job(folder, *common, *overrides, limit_s=1200).succeed()


@pytest.fixture(scope="module")
def job(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return start(tmp_path_factory.mktemp("job") / "run", f"trainer.save_freq={RESUMED_AFTER}")


def test_the_run_trains(job: Job) -> None:
    steps = [job.metrics[step] for step in range(1, STEPS + 1)]
    for metrics in steps:
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        assert len(numbers) > 50 and all(math.isfinite(value) for value in numbers.values())
        assert metrics["training/rollout_probs_diff_mean"] < 1e-5
        assert 0 < metrics["wavalign/lambda"] < 0.8
        assert metrics["wavalign/rows_anchor"] == 8
        assert metrics["actor/grad_norm"] > 0
        assert metrics["wavalign/tokens_text"] > 1 and metrics["wavalign/tokens_speech"] > 1
        assert metrics["actor/anchor_nll_speech"] > 0
    assert steps[0]["wavalign/kl_speech"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["wavalign/kl_speech"] > 0  # the reference stays while the policy moves
    assert job.metrics[STEPS]["val-anchor/nll_speech"] > 0


def test_the_run_can_be_listened_to(job: Job) -> None:
    rows = job.rollouts(1)
    assert len(rows) == 8 * 4
    played = [row for row in rows if row.get("wav")]
    assert len(played) == 8
    for row in played:
        wave, rate = soundfile.read(job.folder / "rollouts" / row["wav"])
        assert rate == 16000 and len(wave) > rate // 4 and abs(wave).max() > 0.01
        assert 1 <= row["score"] <= 5 and row["question"]
    validation = (job.folder / "validation" / f"{STEPS}.jsonl").read_text().splitlines()
    assert len(validation) == 8 and all(json.loads(line)["wav"] for line in validation)
    assert list((job.folder / "tensorboard").glob("events*"))


def test_the_run_leaves_nothing_behind_and_fits(job: Job) -> None:
    assert job.left_behind() == []
    print(f"peak memory of the job: {job.peak_gb:.1f} GB")
    assert 1 < job.peak_gb < MEMORY_GB


def test_every_process_that_is_watched_for_is_there_under_its_title(job: Job) -> None:
    """A class of verl's or of ours that is renamed would be watched no more."""
    assert [start for start in LASTING if not any(title.startswith(start) for title in job.titles)] == []


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(job: Job, tmp_path: Path) -> None:
    checkpoint = job.folder / f"global_step_{RESUMED_AFTER}"
    assert json.loads((checkpoint / "wavalign.json").read_text())["mixing"]["average"] > 0
    resumed = start(tmp_path / "resumed", *resume_from(checkpoint))
    assert [r["question_audio"] for r in resumed.rollouts(STEPS)] == [r["question_audio"] for r in job.rollouts(STEPS)]
    assert_same_step(resumed, job, STEPS)
