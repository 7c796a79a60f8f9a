"""Lines in, parquet and rejects out. The same rows give the same bytes."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from wavalign_ext.data.prepare.dialogue import Sample, SampleError, parse

SCHEMA = pyarrow.schema(
    {
        "data_source": pyarrow.string(),
        "prompt": pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()})),
        "ability": pyarrow.string(),
        "reward_model": pyarrow.struct({"style": pyarrow.string(), "ground_truth": pyarrow.string()}),
        "target_text": pyarrow.string(),
        "target_speech": pyarrow.list_(pyarrow.int64()),
        "extra_info": pyarrow.struct(
            {
                "index": pyarrow.int64(),  # the line in the JSONL file, from 1
                "split": pyarrow.string(),
                "id": pyarrow.string(),
                "question": pyarrow.string(),
                "question_audio": pyarrow.string(),
                "answer_audio": pyarrow.string(),
                "keywords": pyarrow.list_(pyarrow.string()),  # what the reward term semantic looks for
            }
        ),
    }
)


@dataclass
class Line:
    """A line of the JSONL file: its number from 1, its text, its sample unless it has none, and what is wrong."""

    number: int
    text: str
    sample: Sample | None = None
    problems: list[SampleError] = field(default_factory=list)


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that is not blank."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip()
            if not text:
                continue
            line = Line(number, text)
            try:
                if "\ufffd" in text and b"\xef\xbf\xbd" not in raw:
                    raise SampleError("line", text, "is not UTF-8: save the file as UTF-8")
                line.sample = parse(_json(text))
            except SampleError as error:
                line.problems.append(error)
            yield line


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SampleError("line", text, f"is not JSON ({error}): write one object per line") from error


def split_off(digests: Sequence[str], share: float) -> set[int]:
    """Positions of the rows held out: ``share`` of them, at least one, at most all but one.

    Rows are ordered by their digest, so the choice looks random, repeats itself, and keeps equal questions together.
    """
    if share <= 0 or len(digests) < 2:
        return set()
    count = min(max(1, round(share * len(digests))), len(digests) - 1)
    last = sorted(digests)[count - 1]
    return {position for position, digest in enumerate(digests) if digest <= last}


def digest(*parts: Any) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """verl's parquet, whole or not at all."""
    part = path.with_name(path.name + ".part")
    with pyarrow.parquet.ParquetWriter(part, SCHEMA) as writer:
        for start in range(0, len(rows), 1000):
            writer.write_table(pyarrow.Table.from_pylist(list(rows[start : start + 1000]), SCHEMA))
    os.replace(part, path)


def write_rejects(path: Path, lines: Sequence[Line]) -> None:
    """A JSON line for each line left out: ``line``, ``problems`` (field, value, reason), and ``text``, the line."""
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            problems = [{"field": p.field, "value": p.value, "reason": p.reason} for p in line.problems]
            node = {"line": line.number, "problems": problems, "text": line.text}
            file.write(json.dumps(node, ensure_ascii=False) + "\n")
