"""Recordings of people go all the way: ``wavalign prepare``, rollouts and updates of a real job, the report's page."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from human import recordings
from jobs import SMALL, Job

from wavalign_ext.data.prepare.command import main as prepare
from wavalign_ext.report import main as report

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
STEPS, BATCH, SYNTHETIC = 3, 4, 6


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    return recordings(tmp_path_factory.mktemp("human"))


@pytest.fixture(scope="module")
def prepared(pocket: Path, spoken: dict[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten people who ask for their own words, six of pocket's questions; the folder that ``wavalign prepare`` wrote."""
    rows = [_line(f"human {path.stem}", path, path, words, words) for path, words in spoken.items()]
    for row in pyarrow.parquet.read_table(pocket / "data" / "val.parquet").to_pylist()[:SYNTHETIC]:
        info = row["extra_info"]
        files = (pocket / info[name] for name in ("question_audio", "answer_audio"))
        rows.append(_line(f"pocket {info['index']}", *files, info["question"], row["target_text"]))
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prepare([str(folder / "d.jsonl"), "--out", str(folder / "out"), "--val-share", "0.25", "--jobs", "1"]) == 0
    return folder / "out"


def _line(name: str, question: Path, answer: Path, asked: str, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": "<|audio|>"}]
    fields = {"question_text": asked, "target_text": text, "target_audio": str(answer), "id": name}
    return {"messages": messages, "audios": [str(question)], "data_source": name.split()[0], **fields}


@pytest.fixture(scope="module")
def job(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    overrides = [f"data.{split}_files={prepared / split}.parquet" for split in ("train", "val")]
    overrides += [
        f"wavalign.audio_root={prepared}",
        f"data.train_batch_size={BATCH}",
        "wavalign.audio_dump.max_answers=64",
    ]
    # Whole sentences are longer than pocket's own, and spelt by this tokenizer letter by letter.
    overrides += ["data.max_prompt_length=190", "data.max_response_length=300"]
    overrides += ["actor_rollout_ref.rollout.max_model_len=500", "trainer.val_before_train=false"]
    overrides += [f"trainer.total_training_steps={STEPS}", "trainer.save_freq=-1"]
    return Job(tmp_path_factory.mktemp("job") / "run", *SMALL, *overrides).succeed()


def test_every_recording_of_a_person_is_answered(job: Any, prepared: Path, spoken: dict[Path, str]) -> None:
    rows = [row for split in ("train", "val") for row in _rows(prepared / f"{split}.parquet")]
    assert len(rows) == len(spoken) + SYNTHETIC
    asked = {row["extra_info"]["question_audio"] for row in rows if row["data_source"] == "human"}
    assert len(asked) == len(spoken) == 10
    answers = _answers(job.folder)
    assert asked <= {answer["question_audio"] for answer in answers}
    heard = [answer for answer in answers if answer["question_audio"] in asked]
    assert len(heard) >= 6 * 4  # of the ten, at most four are held out; the others have a group of four rollouts
    assert all(1 <= answer["score"] <= 5 and not answer["missing"] for answer in heard)
    assert all(Path(job.folder / folder / answer["wav"]).is_file() for folder, answer in _played(job.folder))


def test_it_trains_on_them(job: Any) -> None:
    for step in range(1, STEPS + 1):
        metrics = job.metrics[step]
        assert metrics["actor/grad_norm"] > 0 and metrics["wavalign/rows_anchor"] == BATCH
        assert metrics["actor/anchor_nll_text"] > 0 and metrics["actor/anchor_nll_speech"] > 0
    assert job.metrics[STEPS]["val-anchor/nll_speech"] > 0
    assert list((job.folder / "tensorboard" / "answers").glob("events*"))


def test_the_report_plays_them(job: Any, spoken: dict[Path, str], tmp_path: Path) -> None:
    assert report([str(job.folder), "--out", str(tmp_path / "report.html")]) == 0
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", (tmp_path / "report.html").read_text(), re.S)
    data, clips = (json.loads(script) for script in scripts[:2])
    shown = [answer for dump in data["dumps"] for answer in dump["answers"] if answer["question"] in spoken.values()]
    assert {answer["question"] for answer in shown} == set(spoken.values())
    for answer in shown:
        assert answer["target"] == answer["question"]
        assert answer["question_audio"] in clips and answer["target_audio"] in clips


def _rows(path: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(path).to_pylist()


def _answers(run: Path) -> list[dict[str, Any]]:
    files = [file for folder in ("rollouts", "validation") for file in sorted((run / folder).glob("*.jsonl"))]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _played(run: Path) -> list[tuple[str, dict[str, Any]]]:
    found = [(file.parent.name, line) for file in run.glob("*/*.jsonl") for line in file.read_text().splitlines()]
    return [(folder, row) for folder, row in ((folder, json.loads(line)) for folder, line in found) if row.get("wav")]
