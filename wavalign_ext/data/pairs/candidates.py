"""Scored answers by prompt, from what has scored them: a run's dumps, a file of candidates, votes of listeners.

Each reader yields prompts in the order of its source; a row that cannot be read is a :class:`Broken` with its place.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The public release's names for what a judge scored (utils/dpo_pair_builder.py of MM-Speech/WavAlign), and ours.
JUDGED = {"semantic_score": "semantic", "paralinguistic_score": "acoustic"}
VOTES = ("question_audio", "text_a", "audio_a", "text_b", "audio_b", "vote")
TOTAL, VOTED = "total", "votes"


@dataclass(frozen=True)
class Broken:
    """A row that no pair can come of, and why; ``reason`` ends with the remedy."""

    where: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """An answer: ``text`` and its ``audio`` (a path), its ``codes``, or both; ``scores`` by name, NaN where missing."""

    name: str
    text: str
    audio: str | None
    codes: tuple[int, ...] | None
    scores: Mapping[str, float]

    @property
    def said(self) -> tuple[Any, ...]:
        """What makes two answers the same one."""
        return self.text, self.codes or self.audio


@dataclass
class Prompt:
    """What was asked: ``key`` tells prompts apart, ``record`` has the fields that a pair's line takes over."""

    key: str
    where: str
    record: dict[str, Any]
    candidates: list[Candidate] = field(default_factory=list)


class _RowError(ValueError):
    """What is wrong with a row, without its place."""


def read(source: Path) -> tuple[str, Iterator[Prompt | Broken]]:
    """(``run``, ``scored`` or ``votes``, the prompts) of a source.

    Raises:
        ValueError: it is none of these.
    """
    if (source / "rollouts").is_dir():
        return "run", _run(source)
    if source.is_file() and source.suffix in (".json", ".jsonl"):
        return "scored", _scored(source)
    if source.is_file() and source.suffix == ".csv":
        return "votes", _votes(source)
    raise ValueError(
        f"{str(source)!r} has no scored answers: give a run's folder (with rollouts/), a .json or .jsonl file of "
        "candidates, or a .csv file of votes"
    )


# --- a run's dumps ------------------------------------------------------------------------------------------------


def _run(folder: Path) -> Iterator[Prompt | Broken]:
    """Answers of all steps by their question; see trainer/rollout_dump.py."""
    prompts: dict[str, Prompt] = {}
    for file in sorted((folder / "rollouts").glob("*.jsonl"), key=lambda path: int(path.stem)):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{file.name}, line {number}"
            try:
                row = _object(line)
                key = row.get("question_audio") or row.get("question")
                if not key:
                    raise _RowError("no question_audio and no question: the run's data must name its questions")
                candidate = _rollout(row)
            except _RowError as error:
                yield Broken(where, str(error))
                continue
            if candidate is not None:
                made = Prompt(
                    key, where, {"question_audio": row.get("question_audio"), "question": row.get("question")}
                )
                prompts.setdefault(key, made).candidates.append(candidate)
    yield from prompts.values()


def _rollout(row: Mapping[str, Any]) -> Candidate | None:
    """None for an answer that no pair may have: cut off, not in the layout, or without one of its halves."""
    if row.get("truncated") or row.get("layout_errors") or not row.get("text") or not row.get("speech_codes"):
        return None
    scores = {TOTAL: _score(row.get("score"), "score")}
    scores |= {name.removeprefix("score_"): _score(row[name], name) for name in row if name.startswith("score_")}
    codes = tuple(int(code) for code in row["speech_codes"].split())
    return Candidate(f"step {row.get('step')}, {row.get('key')}", row["text"], None, codes, scores)


# --- candidates that a judge has scored -----------------------------------------------------------------------------


def _scored(file: Path) -> Iterator[Prompt | Broken]:
    """The public release's schema: ``messages``, ``audios``, ``output: {NAME: {output-text, output-audio, …}}``."""
    for number, line in enumerate(_lines(file), 1):
        where = f"{file.name}, {'line' if file.suffix == '.jsonl' else 'item'} {number}"
        try:
            row = _object(line)
            if not isinstance(row.get("messages"), list) or not row["messages"]:
                raise _RowError("no messages: give the dialogue up to the answer")
            outputs = row.get("output")
            if not isinstance(outputs, Mapping) or not outputs:
                raise _RowError("no output: give the candidates as {NAME: {output-text, output-audio, gemini_score}}")
            kept = {name: value for name, value in row.items() if name != "output"}
            answers = [_output(str(name), entry) for name, entry in sorted(outputs.items())]
            yield Prompt(str(row.get("id") or number), where, kept, answers)
        except _RowError as error:
            yield Broken(where, str(error))


def _output(name: str, entry: Any) -> Candidate:
    if not isinstance(entry, Mapping):
        raise _RowError(f"output {name!r} is no object: give output-text, output-audio and gemini_score")
    text, audio = entry.get("output-text"), entry.get("output-audio")
    if not isinstance(text, str) or not text.strip() or not isinstance(audio, str) or not audio.strip():
        raise _RowError(f"output {name!r} has no output-text or no output-audio: give both, or take it out")
    judged = entry.get("gemini_score")
    if judged is not None and not isinstance(judged, Mapping):
        raise _RowError(f"output {name!r} has gemini_score={judged!r}: give semantic_score and paralinguistic_score")
    scores = {ours: _score((judged or {}).get(theirs), f"output {name!r}, {theirs}") for theirs, ours in JUDGED.items()}
    return Candidate(name, text.strip(), audio.strip(), None, scores)


def _lines(file: Path) -> list[Any]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        return [line for line in text.splitlines() if line.strip()]
    try:
        items = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is not JSON ({error}): give a list of objects") from error
    if not isinstance(items, list):
        raise ValueError(f"{str(file)!r} holds no list: give a list of objects, one for each prompt")
    return items


# --- votes of listeners ---------------------------------------------------------------------------------------------


def _votes(file: Path) -> Iterator[Prompt | Broken]:
    """A CSV row for each vote: ``a``, ``b`` or ``tie`` between two answers to one question.

    An answer's score is the share of its votes that it won, a tie being half of one.
    """
    with open(file, encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    if rows and (missing := [name for name in VOTES if name not in rows[0]]):
        raise ValueError(f"{str(file)!r} lacks the columns {', '.join(missing)}: a row is {', '.join(VOTES)}")
    found: dict[str, tuple[str, dict[tuple[str, str], list[float]]]] = {}
    for number, row in enumerate(rows, 2):
        where = f"{file.name}, line {number}"
        try:
            empty = [name for name in VOTES if not (row[name] or "").strip()]
            if empty:
                raise _RowError(f"{empty[0]} is empty: fill it in, or take the row out")
            if row["vote"] not in ("a", "b", "tie"):
                raise _RowError(f"vote={row['vote']!r}: give a, b or tie")
            a, b = (row["text_a"], row["audio_a"]), (row["text_b"], row["audio_b"])
            if a == b:
                raise _RowError("both answers are the same one: take the row out")
        except _RowError as error:
            yield Broken(where, str(error))
            continue
        won = {"a": 1.0, "b": 0.0, "tie": 0.5}[row["vote"]]
        _, answers = found.setdefault(row["question_audio"], (where, {}))
        answers.setdefault(a, []).append(won)
        answers.setdefault(b, []).append(1 - won)
    for question, (where, answers) in found.items():
        record = {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": [question]}
        share = {answer: sum(wins) / len(wins) for answer, wins in answers.items()}
        listed = [Candidate(audio, text, audio, None, {VOTED: share[text, audio]}) for text, audio in sorted(answers)]
        yield Prompt(question, where, record, listed)


# --- shared -----------------------------------------------------------------------------------------------------


def _object(line: Any) -> Mapping[str, Any]:
    try:
        row = json.loads(line) if isinstance(line, str) else line
    except ValueError as error:
        raise _RowError(f"is not JSON ({error}): write one object per line") from error
    if not isinstance(row, Mapping):
        raise _RowError(f"is {type(row).__name__}, no object: write one object per line")
    return row


def _score(value: Any, name: str) -> float:
    """A score; NaN for one that is not there."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _RowError(f"{name}={value!r} is no number: give one, or null where it is missing")
    return float(value)
