"""Pairs and votes of a listening test, in one SQLite file that any number of tabs and listeners may write to."""

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wavalign_ext.listening.plan import ASPECTS, VOTES, Pair, Trial, trials

FILE = "votes.sqlite"
SCHEMA = """
create table if not exists test (names text not null, pairs text not null);
create table if not exists listeners (
    number integer primary key, token text unique not null, name text not null, headphones text, began real not null);
create table if not exists votes (
    listener integer not null, trial integer not null, pair text not null, a_left integer not null,
    answers text not null, played text not null, seconds real, at real not null, primary key (listener, trial));
"""


@dataclass(frozen=True)
class Vote:
    """What a listener said of one trial: for each of ASPECTS left, tie or right. ``seconds`` he took."""

    listener: int
    trial: Trial
    answers: Mapping[str, str]
    seconds: float | None


class VoteError(ValueError):
    """A vote that does not count. The message says why, for the page that sent it."""


class Store:
    """A test's folder. Raises ValueError: it has no test yet, and none is given; or another one is in it."""

    def __init__(self, folder: Path, names: tuple[str, str] | None = None, pairs: Sequence[Pair] | None = None) -> None:
        self.folder = folder
        if names is None and not (folder / FILE).is_file():
            raise ValueError(f"{str(folder)!r} has no listening test: give two models and --set")
        folder.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            database.executescript(SCHEMA)
            known = database.execute("select names, pairs from test").fetchone()
            if names is not None and pairs is not None:
                row = (json.dumps(names), json.dumps([asdict(pair) for pair in pairs]))
                if known is None:
                    database.execute("insert into test values (?, ?)", known := row)
                elif known != row:
                    raise ValueError(f"{str(folder)!r} has another test with votes: give another --out, or no models")
        if known is None:
            raise ValueError(f"{str(folder)!r} has no listening test: give two models and --set")
        self.names: tuple[str, str] = tuple(json.loads(known[0]))
        self.pairs = [Pair(**pair) for pair in json.loads(known[1])]
        self.by_id = {pair.id: pair for pair in self.pairs}

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.folder / FILE, timeout=20)
        try:
            with database:
                yield database
        finally:
            database.close()

    def join(self, name: str) -> str:
        """A new listener's token; his number is the next free one, so that sides stay balanced."""
        token = secrets.token_urlsafe(12)
        with self._open() as database:
            sql = (
                "insert into listeners (number, token, name, began) "
                "select coalesce(max(number), -1) + 1, ?, ?, ? from listeners"
            )
            database.execute(sql, (token, name.strip()[:60], time.time()))
        return token

    def listener(self, token: str) -> int | None:
        """The number behind a token."""
        with self._open() as database:
            row = database.execute("select number from listeners where token = ?", (token,)).fetchone()
        return None if row is None else row[0]

    def note_headphones(self, listener: int, result: str) -> None:
        """What the headphones check found: ``passed``, or ``skipped``."""
        with self._open() as database:
            database.execute("update listeners set headphones = ? where number = ?", (result, listener))

    def headphones(self, listener: int) -> str | None:
        with self._open() as database:
            return database.execute("select headphones from listeners where number = ?", (listener,)).fetchone()[0]

    def next_trial(self, listener: int) -> Trial | None:
        """The first trial without a vote; None when all are there."""
        with self._open() as database:
            rows = database.execute("select trial from votes where listener = ?", (listener,))
            done = {row[0] for row in rows}
        return next((trial for trial in trials(self.pairs, listener) if trial.number not in done), None)

    def vote(self, listener: int, number: int, answers: Any, played: Any = "", seconds: Any = None) -> None:
        """Keep a vote. The first one for a trial stands: a second tab that sends it again changes nothing.

        Raises:
            VoteError: no such trial, one that is not the listener's turn yet, or an answer that is none.
        """
        known = trials(self.pairs, listener)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(known):
            raise VoteError(f"trial {number!r} is not one of {len(known)}")
        wrong = not isinstance(answers, dict) or set(answers) != set(ASPECTS)
        if wrong or any(answer not in VOTES for answer in answers.values()):
            raise VoteError(f"answers={answers!r}: give {', '.join(ASPECTS)}, each one of {', '.join(VOTES)}")
        following = self.next_trial(listener)
        if following is not None and number > following.number:
            raise VoteError(f"trial {number} is not due: {following.number} is")
        trial = known[number]
        took = float(seconds) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else None
        row = (listener, number, trial.pair, trial.a_left, json.dumps(answers), str(played)[:40], took, time.time())
        with self._open() as database:
            database.execute("insert or ignore into votes values (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def votes(self) -> list[Vote]:
        """All votes, by listener and trial."""
        sql = "select listener, trial, pair, a_left, answers, seconds from votes order by listener, trial"
        with self._open() as database:
            rows = database.execute(sql).fetchall()
        return [Vote(row[0], Trial(row[1], row[2], bool(row[3])), json.loads(row[4]), row[5]) for row in rows]

    def listeners(self) -> dict[int, dict[str, Any]]:
        """Name and headphones of each."""
        with self._open() as database:
            rows = database.execute("select number, name, headphones from listeners order by number").fetchall()
        return {number: {"name": name, "headphones": headphones} for number, name, headphones in rows}
