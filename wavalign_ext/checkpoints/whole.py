"""A run's checkpoints on disk: written aside and renamed, found whole or not used, and rotated.

``RUN/global_step_N`` appears by one rename, when all of it is there; until then it is in ``RUN/.unfinished``.
Its ``wavalign.json``, which is written last, lists its files with their sizes. Imports neither torch nor verl.
"""

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

STATE_FILE = "wavalign.json"
STEP = "global_step_"
TRACKER = "latest_checkpointed_iteration.txt"  # verl's name
ASIDE = ".unfinished"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names it, what is wrong and the remedy."""


def step_folder(run: Path, step: int) -> Path:
    """Where a step's checkpoint is, or would be."""
    return run / f"{STEP}{step}"


def saved_steps(run: Path) -> list[int]:
    """Steps with a folder, whole or not, in their order."""
    names = (path.name.removeprefix(STEP) for path in run.glob(f"{STEP}*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def latest_step(run: Path) -> int | None:
    """The step that a resume goes on from, as verl keeps it. Raises :class:`CheckpointError`: it is no number."""
    path = run / TRACKER
    if not path.is_file():
        return None
    text = path.read_text(errors="replace").strip()
    if not text.isdecimal():
        why = "verl writes the number of the last step there. Correct it, or give trainer.experiment_name=NAME"
        raise CheckpointError(f"{path}={text[:40]!r} is not allowed: {why}")
    return int(text)


def set_latest(run: Path, step: int) -> None:
    """Name the step that a resume goes on from, at once or not at all."""
    new = run / f".{TRACKER}.new"
    new.write_text(str(step))
    os.replace(new, run / TRACKER)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write ``wavalign.json`` with ``state`` and the list of the files that are there now: the last act of a save."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / STATE_FILE).write_text(json.dumps({**state, "files": files}, indent=1))


def read_state(folder: Path) -> dict[str, Any] | None:
    """What ``wavalign.json`` says; None where there is none. Raises :class:`CheckpointError`: it cannot be read."""
    path = folder / STATE_FILE
    try:
        state = json.loads(path.read_text())
        state["mixing"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged ({error}): resume from another step, or delete it") from error
    return state


def problem(folder: Path) -> str | None:
    """What a checkpoint lacks; None: it is whole."""
    try:
        state = read_state(folder)
    except CheckpointError as error:
        return str(error)
    if state is None and any((other / STATE_FILE).is_file() for other in folder.parent.glob(f"{STEP}*")):
        return f"it has no {STATE_FILE}, which is written last"
    files = (state or {}).get("files") or dict.fromkeys(["data.pt"])  # of another trainer, or of an earlier version
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if size is not None and path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
        if path.suffix == ".pt" and not zipfile.is_zipfile(path):  # the end of torch's files says what is in them
            return f"{name} is damaged"
    return None if (folder / "actor").is_dir() else "actor/ is missing"


def newest_whole(run: Path) -> tuple[int | None, list[str]]:
    """The step to go on from, and a line for each newer one that is not whole. Takes none newer than ``latest``.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    latest = latest_step(run)
    lines = []
    for step in reversed(saved_steps(run)):
        if latest is not None and step > latest:
            continue
        wrong = problem(step_folder(run, step))
        if wrong is None:
            return step, lines
        lines.append(f"{step_folder(run, step)} is not whole and is not used: {wrong}")
    if latest is not None and not lines:
        lines.append(f"{run / TRACKER} names step {latest}, and {step_folder(run, latest)} is not there")
    if lines:
        new = "start anew with trainer.experiment_name=NAME or trainer.resume_mode=disable"
        raise CheckpointError(f"{'; '.join(lines)}. No other checkpoint is there: restore it, or {new}")
    return None, []


def aside(run: Path, step: int) -> Path:
    """The folder where a step is written before it is whole, empty now."""
    folder = run / ASIDE / f"{STEP}{step}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(run: Path, step: int) -> None:
    """Give what was written aside its name. What this node does not have is left alone."""
    source, target = run / ASIDE / f"{STEP}{step}", step_folder(run, step)
    if not source.is_dir():
        return
    if target.exists():
        shutil.rmtree(target)
    os.rename(source, target)
    discard_unfinished(run)


def discard_unfinished(run: Path) -> None:
    """Remove what a save that did not end has left."""
    shutil.rmtree(run / ASIDE, ignore_errors=True)


def rotate(run: Path, keep: int, never: int | None = None) -> list[int]:
    """Remove all but the newest ``keep`` checkpoints; returns the steps removed.

    Those that an earlier start of the run has saved count as well. Step ``never`` stays, whatever its age.
    """
    steps = saved_steps(run)
    gone = [step for step in steps[: max(len(steps) - keep, 0)] if step != never]
    for step in gone:
        shutil.rmtree(step_folder(run, step), ignore_errors=True)
    return gone
