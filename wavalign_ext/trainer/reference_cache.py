"""Log-probs of the reference policy by content: each answer of a data set is scored once, whichever run needs it.

A file per reference model in ``$WAVALIGN_CACHE/reference``. What is the same is found again: the model by its weights
and how it computes, an answer by the ids of its prompt and itself.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

WEIGHTS = ("*.safetensors", "*.bin", "config.json")


class ReferenceCache:
    """float32 log-probs (T,) by :func:`content`, in one SQLite file for one reference model."""

    def __init__(self, model: str) -> None:
        root = Path(os.environ.get("WAVALIGN_CACHE", "~/.cache/wavalign")).expanduser() / "reference"
        root.mkdir(parents=True, exist_ok=True)
        self.path = root / f"{model}.sqlite"
        self._db = sqlite3.connect(self.path, timeout=60)  # another run may be writing
        self._db.execute("CREATE TABLE IF NOT EXISTS answers (content TEXT PRIMARY KEY, logp BLOB NOT NULL)")

    def __contains__(self, content: str) -> bool:
        return self._db.execute("SELECT 1 FROM answers WHERE content = ?", (content,)).fetchone() is not None

    def __getitem__(self, content: str) -> torch.Tensor:
        found = self._db.execute("SELECT logp FROM answers WHERE content = ?", (content,)).fetchone()
        if found is None:
            raise KeyError(content)
        return torch.from_numpy(np.frombuffer(found[0], dtype=np.float32).copy())

    def update(self, scored: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Keep them, all or none."""
        rows = [(content, logp.float().numpy().tobytes()) for content, logp in scored]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)


def content(prompt: Sequence[int], answer: Sequence[int], *heard: bytes) -> str:
    """The name of an answer to a prompt, both as ids; ``heard`` is what else the prompt has."""
    digest = hashlib.sha256(json.dumps([list(prompt), list(answer)]).encode())
    for part in heard:
        digest.update(part)
    return digest.hexdigest()


def model_fingerprint(folder: str | Path, how: Mapping[str, Any]) -> str:
    """A hash of a model's weights and configuration, and of ``how`` it computes: precision, overrides.

    A name that is no folder counts as it is.
    """
    digest = hashlib.sha256(json.dumps(how, sort_keys=True, default=str).encode())
    path = Path(folder).expanduser()
    if not path.is_dir():
        digest.update(str(folder).encode())
    for file in sorted(file for pattern in WEIGHTS for file in path.glob(pattern)):
        digest.update(file.name.encode())
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:24]
