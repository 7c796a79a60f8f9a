"""What came of a listening test: win rates with intervals, agreement, checks, and files for what comes next."""

import csv
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from wavalign_ext.evaluate.intervals import Estimate, mean
from wavalign_ext.listening.plan import ASPECTS, Pair, winner
from wavalign_ext.listening.store import Store, Vote

MOST_FAILED = 0.5  # of a listener's checks: with more, his votes are left out


def summary(store: Store) -> dict[str, Any]:
    """Counts and numbers of every aspect; B is the model of interest, A the one that it is compared with."""
    votes, kept = store.votes(), attentive(store)
    used = [vote for vote in votes if vote.listener in kept and not store.by_id[vote.trial.pair].check]
    balance = Counter("left" if vote.trial.a_left else "right" for vote in used)
    return {
        "names": store.names,
        "listeners": len(store.listeners()),
        "left_out": sorted(set(store.listeners()) - kept),
        "votes": len(used),
        "a_left": balance["left"],
        "a_right": balance["right"],
        "aspects": {aspect: _aspect(used, aspect) for aspect in ASPECTS},
    }


def attentive(store: Store) -> set[int]:
    """Listeners who did not fail more than half of the checks that they have had."""
    failed: dict[int, list[bool]] = {number: [] for number in store.listeners()}
    for vote in store.votes():
        if store.by_id[vote.trial.pair].check:
            failed[vote.listener].append(winner(vote.trial, vote.answers["overall"]) != "a")
    return {number for number, those in failed.items() if not those or sum(those) / len(those) <= MOST_FAILED}


def _aspect(votes: Sequence[Vote], aspect: str) -> dict[str, Any]:
    won = [(vote.trial.pair, vote.listener, winner(vote.trial, vote.answers[aspect])) for vote in votes]
    counts = Counter(result for _, _, result in won)
    a, b, ties = counts["a"], counts["b"], counts["tie"]
    decided = binomtest(b, a + b) if a + b else None
    interval = decided.proportion_ci(method="wilson") if decided else None
    return {
        "a": a,
        "b": b,
        "ties": ties,
        "win_rate": _share(won),
        "decided": b / (a + b) if a + b else None,
        "decided_interval": [interval.low, interval.high] if interval else None,
        "p": decided.pvalue if decided else None,
        "agreement": agreement(won),
    }


def _share(won: Sequence[tuple[str, int, str]]) -> Estimate:
    """The share of votes for B, a tie being half; interval by bootstrap over pairs, whose votes stay together."""
    pairs = {pair: number for number, pair in enumerate(dict.fromkeys(pair for pair, _, _ in won))}
    listeners = {one: number for number, one in enumerate(dict.fromkeys(one for _, one, _ in won))}
    values = np.full((len(pairs), max(1, len(listeners))), np.nan)
    for pair, listener, result in won:
        values[pairs[pair], listeners[listener]] = {"a": 0.0, "b": 1.0, "tie": 0.5}[result]
    return mean(values)


def agreement(won: Sequence[tuple[str, int, str]]) -> float | None:
    """Krippendorff's alpha for nominal values: 1 is full agreement, 0 chance; None where no pair has two votes."""
    by_pair: dict[str, list[str]] = {}
    for pair, _, result in won:
        by_pair.setdefault(pair, []).append(result)
    coincidences: Counter[tuple[str, str]] = Counter()
    for results in (group for group in by_pair.values() if len(group) > 1):
        for one, other in itertools.permutations(results, 2):
            coincidences[one, other] += 1 / (len(results) - 1)  # type: ignore[assignment]
    totals: Counter[str] = Counter()
    for (one, _), count in coincidences.items():
        totals[one] += count
    n = sum(totals.values())
    if n < 2:
        return None
    observed = sum(count for (one, other), count in coincidences.items() if one != other) / n
    expected = sum(totals[one] * totals[other] for one in totals for other in totals if one != other) / (n * (n - 1))
    return 1.0 if expected == 0 else 1 - observed / expected


def export(store: Store) -> dict[str, Path]:
    """Write ``votes.csv``, every vote; and ``pairs.csv``, those that count, as ``wavalign pairs`` reads them."""
    kept = attentive(store)
    rows = [_row(store, vote, vote.listener in kept) for vote in store.votes()]
    counted = [_pair_row(store.folder, store.by_id[vote.trial.pair], vote) for vote in _counted(store, kept)]
    paths = {"votes": store.folder / "votes.csv", "pairs": store.folder / "pairs.csv"}
    for path, listed in zip(paths.values(), (rows, counted), strict=True):
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(listed[0]) if listed else ["question_audio"])
            writer.writeheader()
            writer.writerows(listed)
    return paths


def _counted(store: Store, kept: set[int]) -> Iterator[Vote]:
    for vote in store.votes():
        pair = store.by_id[vote.trial.pair]
        if vote.listener in kept and not pair.check and pair.question_audio:
            yield vote


def _row(store: Store, vote: Vote, kept: bool) -> dict[str, Any]:
    pair = store.by_id[vote.trial.pair]
    row: dict[str, Any] = {"listener": vote.listener, "trial": vote.trial.number, "pair": pair.id, "check": pair.check}
    row |= {"category": pair.category, "a_left": vote.trial.a_left, "counted": kept and not pair.check}
    return row | {aspect: winner(vote.trial, vote.answers[aspect]) for aspect in ASPECTS} | {"seconds": vote.seconds}


def _pair_row(folder: Path, pair: Pair, vote: Vote) -> dict[str, Any]:
    def place(name: str) -> str:
        return str((folder / name).resolve())

    return {
        "question_audio": place(pair.question_audio or ""),
        "text_a": pair.text_a,
        "audio_a": place(pair.audio_a),
        "text_b": pair.text_b,
        "audio_b": place(pair.audio_b),
        "vote": winner(vote.trial, vote.answers["overall"]),
        "listener": vote.listener,
    }
