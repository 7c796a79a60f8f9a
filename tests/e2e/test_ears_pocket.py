"""The embedded model that hears, through stock verl, Ray, FSDP2 and vLLM: questions as recordings, then resumed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ask_hearing_vllm import hearing_answers, logps
from jobs import Job, assert_same_step, resume_from
from transformers import AutoModelForCausalLM, AutoTokenizer

from wavalign_ext import models
from wavalign_ext.checkpoints.export import export
from wavalign_ext.checks.hears import measure, read_rows, swapped
from wavalign_ext.report import main as report
from wavalign_ext.speech.layout import ResolvedLayout, load_layout

pytestmark = [pytest.mark.e2e, pytest.mark.slow]  # the encoder and the model behind it take minutes to build
SMALL = [
    "+recipe=wavalign_ears",
    "data.train_batch_size=8",
    "data.val_max_samples=8",
    "trainer.val_before_train=false",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
]
STEPS, RESUMED_AFTER = 2, 1


@pytest.fixture(scope="module")
def assets(pocket: Path) -> Path:
    from wavalign_ext.models.ears.pocket import build

    models.register()
    return build()


@pytest.fixture(scope="module")
def tokenizer(assets: Path) -> Any:
    return AutoTokenizer.from_pretrained(assets / "model")


@pytest.fixture(scope="module")
def layout(tokenizer: Any) -> ResolvedLayout:
    return load_layout("pocket_ears").resolve(tokenizer)


@pytest.fixture(scope="module")
def job(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    more = [f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={RESUMED_AFTER}"]
    return Job(tmp_path_factory.mktemp("ears") / "run", *SMALL, *more, limit_s=600).succeed()


def test_vllm_hears_the_recordings_that_transformers_hears(
    assets: Path, tokenizer: Any, layout: ResolvedLayout, tmp_path: Path
) -> None:
    """Log-probs of vLLM's answers, teacher-forced; beside them those with another row's recording."""
    asked = read_rows(assets / "data" / "val.parquet", assets, tokenizer, 12)
    model = AutoModelForCausalLM.from_pretrained(assets / "model", dtype=torch.float32).eval()
    first, _ = hearing_answers(assets / "model", [(row.prompt, row.heard) for row in asked], tmp_path / "out")
    for row, other, (said, logp, _) in zip(asked, swapped(asked, layout), first, strict=True):
        own = logps(model, row.prompt + said, row.heard)[-len(said) :]
        assert (own - logp).abs().max() < 1e-5
        assert (logps(model, other.prompt + said, other.heard)[-len(said) :] - logp).abs().max() > 0.05


def test_it_trains_on_what_it_hears(job: Job) -> None:
    for step in range(1, STEPS + 1):
        metrics = job.metrics[step]
        assert metrics["training/rollout_probs_diff_mean"] < 1e-5
        assert metrics["wavalign/rows_anchor"] == 8 and metrics["actor/grad_norm"] > 0
    assert job.metrics[STEPS]["wavalign/kl_text"] > 0 and job.metrics[STEPS]["val-anchor/nll_speech"] > 0
    assert any(row.get("wav") and row["question"] for row in job.rollouts(1))


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(job: Job, tmp_path: Path) -> None:
    more = [*resume_from(job.folder / f"global_step_{RESUMED_AFTER}"), f"trainer.total_training_steps={STEPS}"]
    resumed = Job(tmp_path / "resumed", *SMALL, *more, limit_s=600).succeed()
    assert_same_step(resumed, job, STEPS)


def test_the_report_plays_the_questions_that_were_heard(job: Job, tmp_path: Path) -> None:
    assert report([str(job.folder), "--out", str(tmp_path / "report.html")]) == 0
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", (tmp_path / "report.html").read_text(), re.DOTALL)
    data, clips = map(json.loads, scripts[:2])
    answers = [answer for dump in data["dumps"] if dump["split"] == "validation" for answer in dump["answers"]]
    assert len(answers) == 8 and all(answer["question_audio"] in clips for answer in answers)


def test_the_exported_model_hears(
    job: Job, assets: Path, tokenizer: Any, layout: ResolvedLayout, tmp_path: Path
) -> None:
    export(job.folder, tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    rows = read_rows(assets / "data" / "val.parquet", assets, tokenizer, 24)
    found = measure(model, rows, layout, tokenizer)
    print(found)
    assert found.changed > 0.5 and found.right > found.right_swapped
