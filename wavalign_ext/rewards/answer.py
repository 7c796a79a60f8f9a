"""What a reward term sees of one rollout."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False, kw_only=True)
class SpokenAnswer:
    """One spoken answer and what it answers. Waveforms are mono float32 in [-1, 1]; None where there is none.

    ``sample_rate`` (Hz) holds for ``wave`` and ``reference_wave``, ``question_rate`` for ``question_wave``.
    ``ended`` says that the end token came, ``truncated`` that the length limit cut the answer off. ``keywords`` are the
    words this row's answer must have, ``graded`` texts with what each is worth. The terms that score this answer share
    ``notes``: what one found out (a transcript, a count) is shown with the scores.
    """

    text: str
    speech_codes: tuple[int, ...]
    wave: np.ndarray | None
    sample_rate: int
    question_text: str | None = None
    question_wave: np.ndarray | None = None
    question_rate: int = 16000
    reference_text: str
    reference_wave: np.ndarray | None = None
    ended: bool
    truncated: bool
    layout_errors: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    graded: tuple[tuple[str, float], ...] = ()
    notes: dict[str, str | float] = field(default_factory=dict)

    @property
    def has_speech(self) -> bool:
        """False without a waveform, and for one that is empty or all zeros."""
        return self.wave is not None and bool(np.any(self.wave))


def keywords_of(column: Any) -> tuple[str, ...]:
    """A row's list, as parquet and verl's queue hand it over: a list, an array, or None where other rows have some."""
    return () if column is None else tuple(str(word) for word in column)


def graded_of(column: Any) -> tuple[tuple[str, float], ...]:
    """A row's list of {text, score}, likewise."""
    return () if column is None else tuple((str(one["text"]), float(one["score"])) for one in column)
