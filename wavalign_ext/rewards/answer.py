"""What a reward term sees of one rollout."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SpokenAnswer:
    """One spoken answer and what it answers. Waveforms are mono float32 in [-1, 1]; None where there is none.

    ``sample_rate`` (Hz) holds for ``wave`` and ``reference_wave``, ``question_rate`` for ``question_wave``. The terms
    that score this answer share ``notes``: what one found out (a transcript) is shown with the scores.
    """

    text: str
    speech_codes: tuple[int, ...]
    wave: np.ndarray | None
    sample_rate: int
    reference_text: str
    ended: bool
    truncated: bool
    layout_errors: tuple[str, ...] = ()
    question_text: str | None = None
    question_wave: np.ndarray | None = None
    question_rate: int = 16000
    reference_wave: np.ndarray | None = None
    notes: dict[str, str | float] = field(default_factory=dict)
