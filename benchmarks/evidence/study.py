"""What is kept of a trained run: its judged answers and, for the joint objective, what its gradients are made of."""

import asyncio
import json
import os
import shutil
import signal
from functools import cache
from pathlib import Path
from typing import Any

from evidence.plan import RECIPES, Run

DIAGNOSED = "grpo_joint"


def be_quiet() -> None:
    """For the process that judges: the lowest priority, one thread, and it outlives the Ctrl-C that ends training."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(19)
    # For torch, which is not loaded yet; its own call would speak for the calling thread alone, and models have theirs.
    os.environ["OMP_NUM_THREADS"] = "1"


@cache
def _judges() -> Any:
    from evidence.measure import Judges

    return Judges()


def judge(run: Run, folder: Path, steps: int, val_files: list[Path]) -> None:
    """Leave ``answers_STEP.json``, and for the joint runs ``channels_STEP.json``, in the run's folder."""
    from evidence.measure import answers, read_questions

    for step in _ends(run, steps):
        asyncio.run(answers(run, folder, step, _judges(), read_questions(val_files)))
    if run.recipe == DIAGNOSED:
        for step in _checkpoints(folder):
            _diagnose(run, folder, step)


def rows_of(run: Run, folder: Path, steps: int, failure: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each CSV file that come from one run; of a failed run, that it failed."""
    from evidence.measure import curves, summary

    ends = [steps] if failure else _ends(run, steps)
    found = {"runs": [summary(run, folder, step, steps, failure) for step in ends]}
    if failure:
        return found
    found["answers"] = [row for step in ends for row in json.loads((folder / f"answers_{step}.json").read_text())]
    found["curves"] = curves(run, folder)
    if run.recipe == DIAGNOSED:
        for step in _checkpoints(folder):
            who = {"recipe": run.recipe, "seed": run.seed, "step": step}
            kept = json.loads((folder / f"channels_{step}.json").read_text())
            found.setdefault("channels", []).extend(who | row for row in kept["step"])
            found.setdefault("prompts", []).extend(who | row for row in kept["prompts"])
    return found


def _ends(run: Run, steps: int) -> list[int]:
    """The steps whose answers are judged: the last one, and the common start once per seed."""
    return [0] * (run.recipe == RECIPES[0]) + [steps]


def _checkpoints(folder: Path) -> list[int]:
    return [0, *sorted(int(path.name.rsplit("_", 1)[1]) for path in folder.glob("global_step_*"))]


def _diagnose(run: Run, folder: Path, step: int) -> None:
    from evidence.channels import diagnose

    from wavalign_ext.checkpoints.export import export
    from wavalign_ext.pocket import pocket_dir

    kept = folder / f"channels_{step}.json"
    if kept.is_file():
        return
    model = folder / "exported" if step else pocket_dir() / "model"
    if step:
        shutil.rmtree(model, ignore_errors=True)
        export(folder, model, step)
    kept.write_text(json.dumps(diagnose(model, run.seed)))
