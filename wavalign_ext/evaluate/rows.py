"""Rows of a set's files, and fields of a row; what is wrong with one is said with its place."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wavalign_ext.data.pairs.candidates import Broken
from wavalign_ext.evaluate.questions import Question

Found = Iterator[Question | Broken]
Row = Mapping[str, Any]


class RowError(ValueError):
    """What is wrong with a row, without its place."""


def rows(file: Path, shown: str = "") -> Iterator[tuple[str, Row | Broken]]:
    """(place, object) of each line or item; a Broken where it is none."""
    name = f"{shown}/{file.name}" if shown else file.name
    for number, row in json_rows(file):
        where = f"{name}, row {number}"
        if isinstance(row, Mapping):
            yield where, row
        else:
            why = str(row) if isinstance(row, ValueError) else f"is {type(row).__name__}, no object"
            yield where, Broken(where, f"{why}: write one object per row")


def json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of a JSON list's items or of JSONL's lines; the error in place of a line that is no JSON."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} cannot be read: {error}") from error
    if text.lstrip()[:1] == "[":
        try:
            yield from enumerate(json.loads(text), 1)
        except ValueError as error:
            raise ValueError(f"{str(file)!r} is not JSON ({error}): give a list of objects") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                yield number, ValueError(f"is not JSON ({error})")


def made(where: str, make: Callable[..., Question], *arguments: Any) -> Found:
    """The question that ``make`` makes of a row, or what is wrong with the row."""
    try:
        yield make(*arguments)
    except RowError as error:
        yield Broken(where, str(error))


def id_of(row: Row, where: str) -> str:
    """A row's id, or its place."""
    return str(row["id"]) if row.get("id") not in (None, "") else where


def text_of(row: Row, *names: str) -> str | None:
    """The first of these fields that is a text with something in it."""
    found = (row[name] for name in names if isinstance(row.get(name), str) and row[name].strip())
    return next(found, None)


def texts_of(row: Row, *names: str) -> tuple[str, ...]:
    """The first of these fields that is a text or a list of texts."""
    for name in names:
        value = row.get(name)
        if isinstance(value, list) and value:
            return tuple(map(str, value))
        if isinstance(value, str | int | float) and str(value).strip():
            return (str(value),)
    return ()


def needed(row: Row, name: str) -> str:
    """A field that must be there. Raises :class:`RowError`: it is not."""
    value = row.get(name)
    if not isinstance(value, str | int) or not str(value).strip():
        raise RowError(f"has no {name}: fill it in, or take the row out")
    return str(value)
