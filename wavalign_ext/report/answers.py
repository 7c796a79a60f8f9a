"""Which answers the page shows, and where their recordings are."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wavalign_ext.report.clips import Clips
from wavalign_ext.report.reading import SPLITS, Run, number, setting

STEPS = 60  # of each run's rollouts, and of its validations
WITH_AUDIO, WITHOUT_AUDIO = 8, 3  # rows of a step
LONGEST_TEXT = 1500
# What terms found out, shown with their scores.
NOTES = ("wer", "cer", "exact", "right", "similarity", "mos", "likeness", "manner")


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the places 0 … count − 1, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def outside_in(items: Sequence[int]) -> list[int]:
    """Last, first, then ever the middle of the widest gap: any beginning of the list is spread over all of it."""
    if len(items) < 3:
        return list(reversed(items))
    order, gaps = [len(items) - 1, 0], [(0, len(items) - 1)]
    while gaps:
        gaps.sort(key=lambda gap: gap[0] - gap[1])
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [items[place] for place in order]


def pick(rows: Sequence[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """(rank, row): of the rows with and of those without audio, the best, the worst and some between, by score.

    Rank 1 is the best of the step; rows without a score come last.
    """
    ranked = sorted(rows, key=_worse_first, reverse=True)
    places = list(enumerate(ranked, start=1))
    heard = [place for place in places if place[1].get("wav")]
    silent = [place for place in places if not place[1].get("wav")]
    chosen = [heard[i] for i in spread(len(heard), WITH_AUDIO)]
    return chosen + [silent[i] for i in spread(len(silent), WITHOUT_AUDIO)]


def _worse_first(row: dict[str, Any]) -> float:
    score = number(row.get("score"))
    return -math.inf if math.isnan(score) else score


class Targets:
    """Question and target of a row: what the row itself names, else the run's data set where it is on this machine."""

    def __init__(self, run: Run) -> None:
        root = setting(run, "wavalign.audio_root")
        self.root = Path(root) if root else None
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        named = {row.get("question_audio") for dumps in run.dumps.values() for rows in dumps.values() for row in rows}
        for key in ("data.train_files", "data.val_files") if named - {None} else ():
            files = setting(run, key) or []
            for file in [files] if isinstance(files, str) else files:
                self._read(Path(file), named)

    def _read(self, file: Path, named: set[Any]) -> None:
        if not file.is_file():
            return
        import pandas

        try:
            table = pandas.read_parquet(file, columns=["extra_info", "target_text"])
        except Exception:  # a data set of another make: the page says that the target is not there
            return
        for info, text in zip(table["extra_info"], table["target_text"], strict=True):
            if isinstance(info, dict) and info.get("question_audio") in named:
                # The question's words belong to the key: another build may use the same file name for another one.
                key = (str(info["question_audio"]), str(info.get("question")))
                self.rows[key] = {"text": text, "audio": info.get("answer_audio")}

    def of(self, row: dict[str, Any], folder: Path) -> tuple[str | None, Path | None, Path | None]:
        """(target's text, question's recording, target's recording), each None where it is not to be found."""
        known = self.rows.get((str(row.get("question_audio")), str(row.get("question"))), {})
        text = row.get("reference") or known.get("text")
        question = self._path(row, "question_wav", folder) or self._in_root(row.get("question_audio"))
        target = self._path(row, "target_wav", folder) or self._in_root(row.get("answer_audio") or known.get("audio"))
        return text, question, target

    def _path(self, row: dict[str, Any], key: str, folder: Path) -> Path | None:
        return folder / row[key] if isinstance(row.get(key), str) else None

    def _in_root(self, name: Any) -> Path | None:
        path = self.root / name if self.root and isinstance(name, str) else None
        return path if path and path.is_file() else None


def dumps_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The dumps to show, without audio yet; ``order`` says when a dump may spend the audio budget."""
    found = []
    for place, run in enumerate(runs):
        targets = Targets(run)
        for split in SPLITS:
            steps = list(run.dumps.get(split, {}))
            chosen = [steps[i] for i in spread(len(steps), STEPS)]
            for order, step in enumerate(outside_in(chosen)):
                rows = run.dumps[split][step]
                answers = [_answer(rank, row, run.folder / split, targets) for rank, row in pick(rows)]
                dump = {"run": place, "split": split, "step": step, "rows": len(rows), "answers": answers}
                found.append((order, place, split != "validation", dump))
    found.sort(key=lambda item: item[:3])
    return [dump for *_, dump in found]


def embed(dumps: list[dict[str, Any]], clips: Clips) -> None:
    """Replace paths by ids of clips. Validation goes first, and each run gets its share of every round."""
    for dump in dumps:
        for answer in dump["answers"]:
            for key in ("audio", "question_audio", "target_audio"):
                answer[key] = clips.add(answer[key])


def _answer(rank: int, row: dict[str, Any], folder: Path, targets: Targets) -> dict[str, Any]:
    target, question_audio, target_audio = targets.of(row, folder)
    scores = {"reward": row.get("score")}
    scores |= {key.removeprefix("score_"): row[key] for key in row if key.startswith("score_")}
    scores |= {key: row[key] for key in NOTES if isinstance(row.get(key), int | float)}
    return {
        "rank": rank,
        "question": _text(row.get("question")),
        # What tells one question from another; a question may be asked twice, by two voices.
        "key": str(row.get("question_audio") or row.get("question") or ""),
        "target": _text(target),
        "text": _text(row.get("text")),
        "transcript": _text(row.get("transcript")),
        "scores": {name: _rounded(value) for name, value in scores.items()},
        "missing": _text(row.get("missing")) or "",
        "failed": _text(row.get("failed")) or "",
        "audio": folder / row["wav"] if isinstance(row.get("wav"), str) else None,
        "question_audio": question_audio,
        "target_audio": target_audio,
    }


def _rounded(value: Any) -> float | None:
    value = number(value)
    return None if math.isnan(value) else float(f"{value:.4g}")


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value)
    return (
        text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … ({len(text) - LONGEST_TEXT} characters more)"
    )
