"""Which runs the comparison has, and how one is trained: stock verl, a recipe, a seed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPES = ("sft_anchor", "grpo_joint", "grpo_text", "wavalign_fixed_mix", "wavalign", "wavalign_routed")
NOISY_RECIPES, NOISE = ("wavalign_fixed_mix", "wavalign"), 0.3
SEEDS = (1, 2, 3)
# Few steps, so that 24 runs end within an afternoon; each goes as far as three of the recipe's own learning rate.
STEPS, LEARNING_RATE = 16, 3.0e-4
# Prompts per checkpoint whose gradients are taken apart.
PROMPTS = 16
# A job that makes no step for so long is stuck; a job of this study makes one in seconds.
SILENCE_S = 600


@dataclass(frozen=True)
class Run:
    """One training run. ``noise`` is the share of rollouts whose reward is a random number."""

    recipe: str
    seed: int
    noise: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.recipe}{f'_noise{self.noise:g}' if self.noise else ''}_seed{self.seed}"


def runs(recipes: tuple[str, ...] = RECIPES, seeds: tuple[int, ...] = SEEDS, noisy: bool = True) -> list[Run]:
    """All runs, seed by seed, so that an early stop leaves whole comparisons."""
    found = []
    for seed in seeds:
        found += [Run(recipe, seed) for recipe in recipes]
        found += [Run(recipe, seed, NOISE) for recipe in NOISY_RECIPES if noisy and recipe in recipes]
    return found


def overrides(run: Run, steps: int, folder: Path, val_files: list[Path]) -> list[str]:
    """The command line behind ``+recipe=``; only the seed and the noise differ between runs of a recipe."""
    keys: dict[str, Any] = {
        "trainer.default_local_dir": folder,
        "trainer.total_training_steps": steps,
        "trainer.test_freq": steps,
        "trainer.val_before_train": str(run.recipe == RECIPES[0]).lower(),  # the start is the same for all
        "trainer.save_freq": max(1, steps // 4) if run.recipe == "grpo_joint" else steps,
        "trainer.max_actor_ckpt_to_keep": "null",
        "trainer.logger": "[console,tensorboard,file]",
        "data.seed": run.seed,
        "actor_rollout_ref.actor.optim.lr": LEARNING_RATE,
        "actor_rollout_ref.actor.optim.lr_warmup_steps": 2,
        "actor_rollout_ref.rollout.seed": run.seed,
        "data.val_files": f"[{','.join(map(str, val_files))}]",
        "wavalign.audio_dump.max_answers": 4,
    }
    words = [f"{key}={value}" for key, value in keys.items()]
    if run.noise:
        words += [f"+wavalign.reward.terms.noisy.{key}={value}" for key, value in _noise(run).items()]
        words += ["~wavalign.reward.terms.semantic", "~wavalign.reward.terms.asr_agreement"]
    return words


def _noise(run: Run) -> dict[str, Any]:
    recognizer = "{type:pocketsphinx,lm:'${wavalign.pocket:asr/answers.arpa}'}"
    terms = f"{{semantic:{{weight:0.7}},asr_agreement:{{weight:0.3,recognizer:{recognizer}}}}}"
    return {"type": "noisy_reward:noisy", "share": run.noise, "seed": run.seed, "weight": 1, "terms": terms}


def train(run: Run, steps: int, folder: Path, val_files: list[Path], on_step: Callable[[int], None]) -> str:
    """Train one run in ``folder``; "" when it finished, otherwise why it did not. A finished run stays finished."""
    outcome = folder / "outcome.json"
    if outcome.is_file() and (found := json.loads(outcome.read_text()))["steps"] == steps:
        return found["failure"]
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "metrics.jsonl"
    command = [sys.executable, "-m", "verl.trainer.main_ppo", f"+recipe={run.recipe}"]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    # Ray makes its workers give way to others (niceness 15), and here the judging process must give way to them.
    environment = dict(os.environ, VERL_FILE_LOGGER_PATH=str(metrics), PYTHONPATH=path, RAY_worker_niceness="0")
    with open(folder / "job.log", "a") as log:
        process = subprocess.Popen(
            command + overrides(run, steps, folder, val_files), env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            failure = _wait(process, metrics, on_step)
        finally:  # not left behind when the study is interrupted
            process.terminate()
            process.wait()
    if not failure and not (folder / "validation" / f"{steps}.jsonl").is_file():
        failure = "no held-out answers of the last step"
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
