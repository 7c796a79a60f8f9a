"""A package beside WavAlign adds a layout, a codec, a reward term and a recipe, and nothing of WavAlign is touched."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# As without installing it: a path, and verl's switch for modules that it imports in each process.
ENVIRONMENT = {"PYTHONPATH": str(HERE), "VERL_USE_EXTERNAL_MODULES": "wavalign_example", "VERL_PLATFORM": "cpu"}
COMPOSE = """
import json
import verl
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.layout import load_layout
from wavalign_ext.checks.preflight import check_config
from wavalign_ext.rewards import build_terms

with initialize_config_module("verl.trainer.config", version_base=None):
    config = compose("ppo_trainer", ["+recipe=wavalign_example"])
    ours = compose("ppo_trainer", ["+recipe=wavalign"])
wav = check_config(config)
terms = {name: dict(term) for name, term in wav.reward.terms.items()}
print("RESULT", json.dumps({
    "layout": load_layout(wav.layout).name,
    "schedule": load_layout(wav.layout).schedule,
    "weights": build_terms(terms, wav.reward.scale).weights,
    "codes": load_codec({"type": "tones", "codes": 64}).codebook_size,
    "experiment": config.trainer.experiment_name,
    "ours": load_layout(ours.wavalign.layout).name,
}))
"""


def run(command: list[str], timeout_s: float) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [ENVIRONMENT["PYTHONPATH"], os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)


def test_a_recipe_of_another_package_composes() -> None:
    done = run([sys.executable, "-c", COMPOSE], 120)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.split("RESULT", 1)[1])
    assert result == {
        "layout": "example",
        "schedule": [[2, 10]],
        "weights": pytest.approx({"semantic": 1 / 1.2, "manner": 0, "brevity": 0.2 / 1.2}),
        "codes": 64,
        "experiment": "example",
        "ours": "pocket",
    }


def test_its_parts_do_what_they_say(monkeypatch: pytest.MonkeyPatch, registries: None) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    from wavalign_example.codec import Tones
    from wavalign_example.terms import Brevity

    from wavalign_ext.rewards import SpokenAnswer

    codec = Tones(codes=40)
    assert codec.encode(codec.decode([3, 39, 20, 7])) == [3, 39, 20, 7]
    assert len(codec.decode([])) == 0

    def score(text: str) -> float:
        answer = SpokenAnswer(
            text=text,
            speech_codes=(1,),
            wave=None,
            sample_rate=16000,
            reference_text="four",
            ended=True,
            truncated=False,
        )
        return asyncio.run(Brevity((1, 5), words=2).score(answer))

    assert [score("four"), score("it is"), score("it is four now"), score("")] == [5, 5, 3, 1]


# Slow: tests/e2e/test_ears.py shows as well that a module given to verl is loaded in each process of a job.
@pytest.mark.slow
@pytest.mark.e2e
def test_it_trains_two_steps(pocket: Path, tmp_path: Path) -> None:
    small = ["data.train_batch_size=4", "data.val_max_samples=4", "trainer.total_training_steps=2"]
    small += ["trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1"]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "+recipe=wavalign_example", *small]
    done = run([*command, f"trainer.default_local_dir={tmp_path}"], 900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "2.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert all(1 <= row["score_brevity"] <= 5 for row in rows if row["score_brevity"] is not None)
    assert any(row["score_brevity"] is not None for row in rows)
