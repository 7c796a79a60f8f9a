"""Parquet, joined recordings and rejects. The same rows give the same bytes."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from wavalign_ext.data.prepare.lines import Line
from wavalign_ext.speech.heard import HEARD_FEATURES

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
                "index": pyarrow.int64(),  # the line in the JSONL file or the item of the list, from 1
                "split": pyarrow.string(),
                "id": pyarrow.string(),
                "question": pyarrow.string(),
                "question_audio": pyarrow.string(),
                "answer_audio": pyarrow.string(),
                "keywords": pyarrow.list_(pyarrow.string()),  # words that a right answer has
            }
        ),
    }
)

PAIR_SCHEMA = SCHEMA  # of lines with a worse answer
for _name, _type in (
    ("rejected_text", pyarrow.string()),
    ("rejected_speech", pyarrow.list_(pyarrow.int64())),
    ("chosen_score", pyarrow.float64()),
    ("rejected_score", pyarrow.float64()),
):
    PAIR_SCHEMA = PAIR_SCHEMA.append(pyarrow.field(_name, _type))


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
    """verl's parquet, whole or not at all; with a column for what an encoder heard where the rows have it."""
    heard = pyarrow.field(HEARD_FEATURES, pyarrow.list_(pyarrow.string()))
    schema = PAIR_SCHEMA if any("rejected_text" in row for row in rows) else SCHEMA
    schema = schema.append(heard) if HEARD_FEATURES in rows[0] else schema
    part = path.with_name(path.name + ".part")
    with pyarrow.parquet.ParquetWriter(part, schema) as writer:
        for start in range(0, len(rows), 1000):
            writer.write_table(pyarrow.Table.from_pylist(list(rows[start : start + 1000]), schema))
    os.replace(part, path)


def join_audio(out: Path, names: Sequence[str]) -> str | None:
    """Where recordings of one rate lie in ``out`` as one, one after the other; None for none."""
    import numpy as np
    import soundfile

    if len(names) < 2:
        return names[0] if names else None
    key = digest(*names)
    path = out / "audio" / key[:2] / f"{key}.flac"
    if not path.is_file():
        waves, rates = zip(*(soundfile.read(out / name, dtype="int16") for name in names), strict=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        soundfile.write(part, np.concatenate(waves), rates[0], format="FLAC", subtype="PCM_16")
        os.replace(part, path)
    return path.relative_to(out).as_posix()


def write_rejects(path: Path, lines: Sequence[Line]) -> None:
    """A JSON line for each line left out: ``line``, ``problems`` (field, value, reason), and ``text``, the line."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:  # of lone surrogates
        for line in lines:
            problems = [{"field": p.field, "value": p.value, "reason": p.reason} for p in line.problems]
            node = {"line": line.number, "problems": problems, "text": line.text}
            file.write(json.dumps(node, ensure_ascii=False) + "\n")
