"""``wavalign evaluate`` of a real run beside the model that it began with, and its page in a headless Chromium."""

import base64
import csv
import io
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import soundfile
from browser import chromium
from jobs import SMALL, Job
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from wavalign_ext.cli import main
from wavalign_ext.evaluate.models import load_models
from wavalign_ext.listening.store import Store
from wavalign_ext.listening.talk import Voice

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
QUESTIONS, SEEDS = 6, 2
PLAY = """async (audio) => {
  await audio.play();
  await new Promise((done) => setTimeout(done, 300));
  return [audio.duration, audio.currentTime, audio.error];
}"""


@pytest.fixture(scope="module")
def run(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, far enough that trained and base answer differently."""
    more = ["trainer.total_training_steps=2", "trainer.val_before_train=false", "trainer.save_freq=2"]
    rate = ["actor_rollout_ref.actor.optim.lr=3e-3", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"]
    return Job(tmp_path_factory.mktemp("evaluate") / "run", *SMALL, *more, *rate).succeed().folder


@pytest.fixture(scope="module")
def evaluation(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluate") / "out"
    assert _evaluate(run, out) == 0
    return out


def _evaluate(run: Path, out: Path) -> int:
    return main(["evaluate", str(run), "--base", "--limit", str(QUESTIONS), "--seeds", str(SEEDS), "--out", str(out)])


def test_every_answer_of_both_models_is_drawn_and_measured(run: Path, evaluation: Path) -> None:
    data = json.loads((evaluation / "results.json").read_text())
    assert data["facts"]["questions"] == QUESTIONS and list(data["facts"]["models"]) == ["base", run.name]
    with open(evaluation / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * QUESTIONS * SEEDS
    assert all((evaluation / row["wav"]).is_file() and row["reward"] for row in rows)
    said = {name: [row["text"] for row in rows if row["model"] == name] for name in ("base", run.name)}
    assert said["base"] != said[run.name]
    against = [line for line in data["lines"] if line["model"] == run.name and line["against"]]
    assert {"reward", "open_wer"} <= {line["measure"] for line in against}


def test_the_same_command_draws_nothing_again(run: Path, evaluation: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (evaluation / "answers").iterdir()}
    capfd.readouterr()
    assert _evaluate(run, evaluation) == 0
    assert "to draw" not in capfd.readouterr().out
    assert before == {path: path.read_bytes() for path in (evaluation / "answers").iterdir()}


def test_its_page_opens_without_a_complaint_and_plays(evaluation: Path) -> None:
    with chromium() as browser:
        page = browser.new_page()
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((evaluation / "index.html").as_uri())
        players: Any = page.locator("audio")
        assert players.count() == QUESTIONS * 3  # the question, and an answer of each model
        for player in players.all():
            duration, time, error = player.evaluate(PLAY)
            assert duration > 0.2 and time > 0 and error is None
        assert complaints == []
        assert [url for url in requests if not url.startswith(("data:", "file:"))] == []


def test_a_listening_test_compares_real_answers(run: Path, tmp_path: Path) -> None:
    command = ["listening-test", str(run), "--base", "--pairs", "4", "--out", str(tmp_path), "--results"]
    assert main(command) == 0
    pairs = [pair for pair in Store(tmp_path).pairs if not pair.check]
    assert len(pairs) == 4 and Store(tmp_path).names == ("base", run.name)
    for pair in pairs:
        waves = [soundfile.read(tmp_path / str(name))[0] for name in (pair.audio_a, pair.audio_b, pair.question_audio)]
        assert all(len(wave) > 1600 and abs(wave).max() > 0.01 for wave in waves)


def test_talk_answers_a_recording_as_it_comes(run: Path, pocket: Path, tmp_path: Path) -> None:
    (model,) = load_models([run], None, tmp_path)
    told: list[dict[str, Any]] = []
    with ExitStack() as engines:
        voice = Voice(model, tmp_path, engines)
        voice.answer(next((pocket / "audio" / "val").iterdir()).read_bytes(), told.append)
        voice.answer(b"no recording", told.append)
    *before, whole, refused = told
    assert whole["done"] and "error" not in whole and whole["text"].startswith(before[0]["text"])
    assert len(before) > 3 and sum("wav" in line for line in told) >= 2
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(whole["wav"])))
    assert rate == 16000 and len(wave) > rate // 4
    assert refused["done"] and refused["error"]


def test_a_run_of_another_model_is_refused(
    run: Path, pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Assets that were built anew lie where the run's path leads: it would be heard through another codec."""
    model = shutil.copytree(pocket / "model", tmp_path / "anew")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] *= 1.001  # as large a file
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    other = shutil.copytree(run, tmp_path / "run")
    recorded = OmegaConf.load(other / "hydra" / "config.yaml")
    recorded.actor_rollout_ref.model.path = str(model)
    OmegaConf.save(recorded, other / "hydra" / "config.yaml")
    assert _evaluate(other, tmp_path / "out") == 2
    assert "began with another model" in capsys.readouterr().err
    shutil.rmtree(model)  # without a base, where the run began need not be there
    assert _evaluate(other, tmp_path / "out") == 2
    assert "leave it out" in capsys.readouterr().err
