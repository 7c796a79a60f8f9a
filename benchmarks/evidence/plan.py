"""One run of the confirmation: stock verl, a recipe, a seed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A job that makes no step for so long is stuck; a job of this study makes one in seconds.
SILENCE_S = 600


@dataclass(frozen=True)
class Run:
    """One training run."""

    recipe: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe}_seed{self.seed}"


def overrides(run: Run, steps: int, folder: Path, val_files: list[Path], start: bool) -> list[str]:
    """The command line behind ``+recipe=``; ``start``: the model that all start from is measured as well."""
    keys: dict[str, Any] = {
        "trainer.default_local_dir": folder,
        "trainer.total_training_steps": steps,
        "trainer.test_freq": steps,
        "trainer.val_before_train": str(start).lower(),
        "trainer.save_freq": steps,  # for wavalign evaluate and wavalign listen
        "trainer.logger": "[console,file]",
        "trainer.resume_mode": "disable",  # a run that was stopped begins anew: its metrics are gone
        "data.seed": run.seed,
        "actor_rollout_ref.rollout.seed": run.seed,
        "data.val_files": f"[{','.join(map(str, val_files))}]",
        "wavalign.audio_dump.max_answers": 1000,  # all, so that every recipe's answer to a question can be heard
    }
    return [f"{key}={value}" for key, value in keys.items()]


def train(
    run: Run, steps: int, folder: Path, val_files: list[Path], start: bool, on_step: Callable[[int], None]
) -> str:
    """Train one run in ``folder``; "" when it finished, otherwise why it did not. A finished run stays finished."""
    outcome = folder / "outcome.json"
    if outcome.is_file() and (found := json.loads(outcome.read_text()))["steps"] == steps:
        return found["failure"]
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "metrics.jsonl"
    command = [sys.executable, "-m", "verl.trainer.main_ppo", f"+recipe={run.recipe}"]
    environment = dict(os.environ, VERL_FILE_LOGGER_PATH=str(metrics))
    with open(folder / "job.log", "a") as log:
        process = subprocess.Popen(
            command + overrides(run, steps, folder, val_files, start),
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            failure = _wait(process, metrics, on_step)
        finally:  # not left behind when the study is interrupted
            process.terminate()
            process.wait()
    if not failure and steps not in read_metrics(folder):
        failure = "no metrics of the last step"
    outcome.write_text(json.dumps({"steps": steps, "failure": failure}))
    return failure


def _wait(process: subprocess.Popen, metrics: Path, on_step: Callable[[int], None]) -> str:
    last, seen = time.monotonic(), -1
    while process.poll() is None:
        time.sleep(2)
        step = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
        if step != seen:
            last, seen = time.monotonic(), step
            on_step(step)
        elif time.monotonic() - last > SILENCE_S:
            process.terminate()
            process.wait(60)
            return f"stopped: no step for {SILENCE_S} s after {seen}"
    return "" if process.returncode == 0 else f"exit status {process.returncode}, see job.log"


def read_metrics(folder: Path) -> dict[int, dict[str, float]]:
    """``{step: {metric: value}}`` of a run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["data"] for line in map(json.loads, lines)}
