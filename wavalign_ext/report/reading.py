"""What a run left in its folder: scalars, dumps of answers, configuration. What is missing becomes a sentence."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_RUNS = 8  # as many colours as people tell apart
SPLITS = ("validation", "rollouts")
# Columns of a dump whose mean over the step's rows is a curve; ``score_<term>`` are others.
COLUMNS = ("score", "wer", "exact")


class ReportError(ValueError):
    """A folder that cannot be reported on. The message names it, what is expected and the remedy."""


@dataclass
class Run:
    """``scalars[tag][step]`` is a number or NaN; ``dumps[split][step]`` are rows, without their speech codes."""

    name: str
    folder: Path
    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    dumps: dict[str, dict[int, list[dict[str, Any]]]] = field(default_factory=dict)
    config: Any = None
    overrides: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def terms(self) -> list[str]:
        """Names of the reward terms that scored an answer."""
        rows = (row for dumps in self.dumps.values() for rows in dumps.values() for row in rows)
        return list(
            dict.fromkeys(key.removeprefix("score_") for row in rows for key in row if key.startswith("score_"))
        )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run, each with a name of its own. Raises :class:`ReportError`."""
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    if len(folders) > MOST_RUNS:
        raise ReportError(f"{len(folders)} runs do not fit on one page: give at most {MOST_RUNS}")
    return [read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """One run. Raises :class:`ReportError` when the folder is none."""
    if not folder.is_dir():
        raise ReportError(f"{str(folder)!r} is no folder: give the folder of a run, for example runs/pocket")
    if not any((folder / part).is_dir() for part in ("tensorboard", *SPLITS)):
        raise ReportError(
            f"{str(folder)!r} is not a run: expected tensorboard/, rollouts/ or validation/ in it; "
            "give the folder that trainer.default_local_dir named, for example runs/pocket"
        )
    run = Run(name, folder)
    run.scalars = _scalars(folder / "tensorboard", run.notices)
    for split in SPLITS:
        run.dumps[split] = _dumps(folder / split, run.notices)
        for tag, points in _means(split, run.dumps[split]):
            run.scalars[tag] = points
    if not run.dumps["validation"]:
        run.notices.append("No held-out answers: validation/ has no dump yet; trainer.test_freq says when it is made.")
    if not run.dumps["rollouts"]:
        run.notices.append("No rollouts: rollouts/ has no dump yet; trainer.rollout_data_dir says where they go.")
    run.config, run.overrides = _config(folder / "hydra", run.notices)
    return run


def _names(folders: list[Path]) -> list[str]:
    """The last part of each path, or as many as tell the runs apart."""
    for parts in range(1, 1 + max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _scalars(folder: Path, notices: list[str]) -> dict[str, dict[int, float]]:
    """Every scalar. A resumed run writes a step again: what was written last counts."""
    found: dict[str, dict[int, float]] = {}
    if any(folder.glob("*tfevents*")):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = {event.step: event.value for event in sorted(events.Scalars(tag), key=lambda e: e.wall_time)}
    if not found:
        notices.append(
            "No scalars: tensorboard/ is missing or empty, so λ, KL, entropy and losses have no curve; "
            "a run writes it with trainer.logger=[console,tensorboard]."
        )
    return found


def _dumps(folder: Path, notices: list[str]) -> dict[int, list[dict[str, Any]]]:
    """Rows by step. A line that is cut off, as a running job leaves it, is left out and counted."""
    found: dict[int, list[dict[str, Any]]] = {}
    broken = 0
    for path in sorted((p for p in folder.glob("*.jsonl") if p.stem.isdecimal()), key=lambda p: int(p.stem)):
        rows, cut = read_dump(path)
        broken += cut
        if rows:
            found[int(path.stem)] = rows
    if broken:
        notices.append(f"{folder.name}/ has lines that are not JSON objects and were left out: {broken}.")
    return found


def read_dump(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(rows without their speech codes, how many lines are no rows) of one dump."""
    rows, broken = [], 0
    # Not splitlines: an answer may have U+2028 in it, which JSON does not escape.
    for line in filter(str.strip, path.read_text(encoding="utf-8", errors="replace").split("\n")):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            row.pop("speech_codes", None)  # most of the file, and nothing to look at
            rows.append(row)
        else:
            broken += 1
    return rows, broken


def number(value: Any) -> float:
    """NaN for everything that is no number."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else math.nan


def _means(split: str, dumps: dict[int, list[dict[str, Any]]]) -> Iterator[tuple[str, dict[int, float]]]:
    """(``SPLIT/COLUMN``, mean over the rows that have the number, by step); and ``SPLIT/missing``, a share."""
    if not dumps:
        return
    seen = dict.fromkeys(key for rows in dumps.values() for row in rows for key in row)
    for column in [*COLUMNS, *(key for key in seen if key.startswith("score_"))]:
        points = {}
        for step, rows in dumps.items():
            known = [value for value in (number(row.get(column)) for row in rows) if not math.isnan(value)]
            points[step] = sum(known) / len(known) if known else math.nan
        yield f"{split}/{column}", points
    missing = {step: [math.isnan(number(row.get("score"))) for row in rows] for step, rows in dumps.items()}
    yield f"{split}/missing", {step: sum(flags) / len(flags) for step, flags in missing.items()}


def _config(folder: Path, notices: list[str]) -> tuple[Any, list[str]]:
    """Hydra's configuration, unresolved, and what was overridden."""
    from omegaconf import OmegaConf

    from wavalign_ext.integration import resolvers

    resolvers.register()
    try:
        config = OmegaConf.load(folder / "config.yaml")
    except Exception as error:  # no file, no YAML: the page does without
        notices.append(f"No configuration: hydra/config.yaml cannot be read ({type(error).__name__}).")
        return None, []
    try:
        overrides = [str(item) for item in OmegaConf.load(folder / "overrides.yaml")]
    except Exception:
        overrides = []
    return config, overrides


def setting(run: Run, key: str) -> Any:
    """A value of the run's configuration, or None where it is absent or cannot be resolved on this machine."""
    from omegaconf import OmegaConf

    if run.config is None:
        return None
    try:
        value = OmegaConf.select(run.config, key)
    except Exception:
        return None
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
