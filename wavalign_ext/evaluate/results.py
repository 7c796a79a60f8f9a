"""Tables of an evaluation: per model and measure a mean, against the base a paired difference and a win rate."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wavalign_ext.evaluate.intervals import Estimate, difference, mean, win_rate
from wavalign_ext.evaluate.questions import Question
from wavalign_ext.evaluate.score import BY_NAME, DOWN, NEITHER, UP, Measure, columns

ALL = "all"


@dataclass
class ModelRows:
    """A model's answers, measured; ``first_audio_s`` by question; ``refused`` and ``absent`` as they came about."""

    name: str
    rows: list[dict[str, Any]]
    first_audio_s: Mapping[str, float] = field(default_factory=dict)
    refused: list[Any] = field(default_factory=list)
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One measure of one model in one category; ``against`` and ``wins`` are relative to the base, the first model.

    A win is the better value, whichever way the measure goes; None for the base itself, and where no way is better.
    """

    category: str
    measure: str
    model: str
    mean: Estimate
    against: Estimate | None
    wins: Estimate | None


def measure_of(name: str) -> Measure:
    """A known measure, or one made of a reward term's name."""
    return BY_NAME.get(name) or Measure(name, UP, f"the reward's term {name.removeprefix('score_')}")


def lines(models: Sequence[ModelRows], questions: Sequence[Question], seeds: int) -> list[Line]:
    """Every category, measure and model; the category ALL comes first."""
    names = columns([row for model in models for row in model.rows])
    names += ["first_audio_ms"] if any(model.first_audio_s for model in models) else []
    categories = list(dict.fromkeys(question.category for question in questions))
    groups = {ALL: list(questions)}
    if len(categories) > 1:
        groups |= {name: [q for q in questions if q.category == name] for name in categories}
    found = []
    for category, asked in groups.items():
        for name in names:
            values = [_matrix(model, asked, seeds, name) for model in models]
            better = measure_of(name).better
            for number, (model, own_QS) in enumerate(zip(models, values, strict=True)):
                if np.isnan(own_QS).all():
                    continue
                against = difference(own_QS, values[0]) if number else None
                wins = win_rate(better * own_QS, better * values[0]) if number and better != NEITHER else None
                found.append(Line(category, name, model.name, mean(own_QS), against, wins))
    return found


def _matrix(model: ModelRows, questions: Sequence[Question], seeds: int, name: str) -> np.ndarray:
    """(questions, seeds), NaN where there is no value."""
    place = {question.id: number for number, question in enumerate(questions)}
    values = np.full((len(questions), seeds), np.nan)
    if name == "first_audio_ms":
        for key, seconds in model.first_audio_s.items():
            if key in place:
                values[place[key], 0] = 1000 * seconds
        return values
    for row in model.rows:
        value = row["values"].get(name)
        if row["question"] in place and value is not None:
            values[place[row["question"]], row["seed"]] = value
    return values


def table(found: Sequence[Line], category: str = ALL) -> str:
    """A category as a Markdown table: value, interval, n; behind the base also difference and win rate."""
    names = list(dict.fromkeys(line.model for line in found))
    chosen = {(line.measure, line.model): line for line in found if line.category == category}
    out = ["| measure | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for measure in dict.fromkeys(line.measure for line in found if line.category == category):
        cells = [cell(chosen.get((measure, name))) for name in names]
        out.append(f"| {titled(measure)} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def titled(measure: str) -> str:
    """The measure's name and which way is better."""
    return measure + {UP: " ↑", DOWN: " ↓"}.get(measure_of(measure).better, "")


def cell(line: Line | None) -> str:
    """``.54 [.45, .63] n=96; Δ +.03 [−.02, .08]; wins .51``."""
    if line is None:
        return "–"
    text = f"{shown(line.mean)} n={line.mean.answers}"
    if line.against is not None and not math.isnan(line.against.value):
        text += f"; Δ {shown(line.against, sign=True)}"
    if line.wins is not None and not math.isnan(line.wins.value):
        text += f"; wins {shown(line.wins)}"
    return text


def shown(estimate: Estimate, sign: bool = False) -> str:
    """A value with its interval, to three figures."""
    value = f"{estimate.value:+.3g}" if sign else f"{estimate.value:.3g}"
    return value if math.isnan(estimate.low) else f"{value} [{estimate.low:.3g}, {estimate.high:.3g}]"


def write(
    out: Path, found: Sequence[Line], models: Sequence[ModelRows], questions: Sequence[Question], facts: Any
) -> None:
    """``results.json``, ``summary.csv`` (a line of the tables each) and ``answers.csv`` (an answer each)."""
    data = {"facts": facts, "lines": [_plain(line) for line in found]}
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    _csv(out / "summary.csv", (_flat(line) for line in found))
    _csv(out / "answers.csv", _answers(models, questions))


def _plain(line: Line) -> dict[str, Any]:
    """NaN is null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return clean(asdict(line))


def _flat(line: Line) -> dict[str, Any]:
    row: dict[str, Any] = {"category": line.category, "measure": line.measure, "model": line.model}
    for prefix, estimate in (("", line.mean), ("difference_", line.against), ("wins_", line.wins)):
        for name in ("value", "low", "high", "questions", "answers"):
            value = None if estimate is None else getattr(estimate, name)
            row[prefix + name] = None if isinstance(value, float) and math.isnan(value) else value
    return row


def _answers(models: Sequence[ModelRows], questions: Sequence[Question]) -> Iterator[dict[str, Any]]:
    by_id = {question.id: question for question in questions}
    names = columns([row for model in models for row in model.rows])
    for model in models:
        for row in model.rows:
            question = by_id[row["question"]]
            told = {"model": model.name, "category": question.category, "asked": question.text}
            told |= {name: row[name] for name in ("question", "seed", "text", "transcript", "wav")}
            told |= {name: row["values"].get(name) for name in names}
            yield told | {"missing": "; ".join(f"{name}: {why}" for name, why in row["reasons"].items())}


def _csv(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    listed = list(rows)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in listed for key in row)))
        writer.writeheader()
        writer.writerows(listed)
