"""Pairs out of a data set's own targets: to each question its answer, against that to another question of its kind.

No model and no judge is needed, and both answers are in the recorded voice: only the words tell them apart. The
recipes of the embedded default train on such pairs.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet


def with_other_answers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` of one file with ``rejected_text`` and ``rejected_speech``; those without a wrong answer are left out.

    The wrong answer is the target of the next row of the same ``ability``, in an order by hash, that says something
    else.
    """
    kinds: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        kinds[row["ability"]].append(number)
    made: dict[int, dict[str, Any]] = {}
    for numbers in kinds.values():
        order = sorted(numbers, key=lambda n: hashlib.sha256(f"{n} {rows[n]['target_text']}".encode()).digest())
        for place, number in enumerate(order):
            others = (rows[n] for n in order[place + 1 :] + order[:place])
            other = next((one for one in others if one["target_text"] != rows[number]["target_text"]), None)
            if other is not None:
                rejected = {"rejected_text": other["target_text"], "rejected_speech": other["target_speech"]}
                made[number] = rows[number] | rejected
    return [made[number] for number in sorted(made)]


def make_pocket_pairs(folder: Path) -> None:
    """``pairs_train.parquet`` and ``pairs_val.parquet`` beside the embedded default's data, unless they are there."""
    for split in ("train", "val"):
        path = folder / f"pairs_{split}.parquet"
        if not path.is_file():
            rows = pyarrow.parquet.read_table(folder / f"{split}.parquet").to_pylist()
            part = path.with_name(f"{path.name}.{os.getpid()}.part")  # two runs may start at once
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(with_other_answers(rows)), part)
            os.replace(part, path)
