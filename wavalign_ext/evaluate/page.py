"""One HTML page of an evaluation: tables, and answers of all models to one question side by side, to play."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from wavalign_ext.evaluate.questions import Question
from wavalign_ext.evaluate.results import ALL, Line, ModelRows, cell, measure_of, titled
from wavalign_ext.report.clips import Clips

MOST_SHOWN, MOST_BYTES = 24, 12_000_000
SHOWN = ("right", "right_heard", "iq", "eq", "open_wer", "mos", "reward")


def render(
    found: Sequence[Line],
    models: Sequence[ModelRows],
    questions: Sequence[Question],
    root: Path,
    out: Path,
    facts: dict[str, Any],
    notices: Sequence[str],
) -> str:
    """The page: no network, no script, recordings inside as MP3. The first seed's answers are shown."""
    from jinja2 import Environment
    from markupsafe import Markup

    clips = Clips(MOST_BYTES)
    chosen = _spread(questions)
    items = [_item(question, models, root, out, clips) for question in chosen]
    categories = list(dict.fromkeys(line.category for line in found))
    measures = {c: list(dict.fromkeys(line.measure for line in found if line.category == c)) for c in categories}
    left = f"; {clips.beyond_budget} recordings left out to keep the page small" if clips.beyond_budget else ""
    html = Environment(autoescape=True, trim_blocks=True).from_string(_asset("evaluate", "evaluation.html"))
    return html.render(
        models=[model.name for model in models],
        facts=facts,
        notices=notices,
        categories=sorted(categories, key=lambda name: name != ALL),
        category_measures=measures,
        about={name: measure_of(name).about for names in measures.values() for name in names},
        titles={name: titled(name) for names in measures.values() for name in names},
        cells={(line.category, line.measure, line.model): cell(line) for line in found},
        items=items,
        said=f"{len(items)} of {len(questions)} questions, the first seed{left}. All answers: answers.csv and audio/.",
        clips=clips.data,
        mime=clips.mime,
        styles=Markup(_asset("report", "report.css")),
    )


def _spread(questions: Sequence[Question]) -> list[Question]:
    """At most MOST_SHOWN, of every category in turn."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.category, []).append(question)
    rounds = [group[place] for place in range(MOST_SHOWN) for group in groups.values() if place < len(group)]
    return rounds[:MOST_SHOWN]


def _item(question: Question, models: Sequence[ModelRows], root: Path, out: Path, clips: Clips) -> dict[str, Any]:
    answers = []
    for model in models:
        row = next((row for row in model.rows if row["question"] == question.id and row["seed"] == 0), None)
        answers.append(row and _answer(row, out, clips))
    audio = root / question.audio if isinstance(question.audio, str) else None
    return {
        "asked": question.text,
        "category": question.category,
        "references": " / ".join(question.references[:3]),
        "audio": clips.add(audio),
        "answers": answers,
    }


def _answer(row: dict[str, Any], out: Path, clips: Clips) -> dict[str, Any]:
    numbers = [f"{name} {row['values'][name]:.3g}" for name in SHOWN if row["values"].get(name) is not None]
    return {
        "text": row["text"],
        "audio": clips.add(out / row["wav"] if row["wav"] else None),
        "numbers": ", ".join(numbers),
    }


def _asset(room: str, name: str) -> str:
    return (resources.files(f"wavalign_ext.{room}") / "assets" / name).read_text(encoding="utf-8")
