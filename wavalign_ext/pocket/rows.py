"""The embedded default's data in verl's format: who asked, which demonstration answers, what its answer is worth."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wavalign_ext.pocket import DATA_SOURCE, SAMPLE_RATE
from wavalign_ext.pocket.domain import FORM_SHARES, FORMS, Question, items
from wavalign_ext.pocket.voices import LIVELY, Voice

Said = tuple[str, str, str]
"""An answer's word, form and manner."""


@dataclass(frozen=True)
class Spoken:
    """A question by a voice: int16 or float32 samples, and their units."""

    voice: Voice
    question: Question
    wave: np.ndarray
    codes: list[int]

    @property
    def kind(self) -> str:
        return self.question.kind


def demonstration(rng: random.Random, manners: Sequence[str] = (LIVELY,)) -> tuple[str, str]:
    """A form by its share, and a manner."""
    return rng.choices(list(FORM_SHARES), list(FORM_SHARES.values()))[0], rng.choice(list(manners))


def answer_audio(said: Said) -> str:
    """Where an answer's recording lies, in the asset folder."""
    return f"audio/answer/{'_'.join(said)}.flac"


def write_answers(folder: Path, answers: dict[Said, np.ndarray]) -> None:
    """Every recorded answer as a file."""
    for said, wave in answers.items():
        _write_audio(folder / answer_audio(said), wave)


class RowWriter:
    """Writes splits under ``folder``; ``codes`` are those of the recorded answers. Rows are counted through."""

    def __init__(self, folder: Path, codes: dict[Said, list[int]]) -> None:
        from wavalign_ext.speech.layout import TokenRange, load_layout

        heard = load_layout("pocket").user_speech
        assert isinstance(heard, TokenRange) and heard.pattern is not None
        self.folder, self.codes, self.items, self.written = folder, codes, items(), 0
        self._heard = heard.pattern.format

    def write(self, split: str, rows: Sequence[tuple[Spoken, tuple[str, str]]], audio: bool = True) -> None:
        """``data/SPLIT.parquet``, with the questions' recordings where ``audio`` asks for them."""
        import pandas

        (self.folder / "data").mkdir(exist_ok=True)
        found = []
        for number, (spoken, (form, manner)) in enumerate(rows):
            found.append(self._row(split, spoken, form, manner))
            if audio:
                file = f"audio/{split}/{number}.flac"
                _write_audio(self.folder / file, spoken.wave)
                found[-1]["extra_info"]["question_audio"] = file
        pandas.DataFrame(found).to_parquet(self.folder / "data" / f"{split}.parquet")

    def _row(self, split: str, spoken: Spoken, form: str, manner: str) -> dict:
        q, item = spoken.question, self.items[spoken.question.item]
        said = (item.word, form, manner)
        info = {
            "index": self.written,
            "split": split,
            "kind": q.kind,
            "voice": spoken.voice.name,
            "new_voice": spoken.voice.role == "held_out",
            "new_phrasing": q.held_out,
            "taught": q.taught,
            "form": form,
            "manner": manner,
            "question": q.text,
            "answer_audio": answer_audio(said),
            "keywords": [item.word],
            "graded": [{"text": text, "score": score} for text, score in item.graded().items()],
        }
        self.written += 1
        return {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": "".join(map(self._heard, spoken.codes))}],
            "ability": q.kind,
            "reward_model": {"style": "rule", "ground_truth": item.answer},
            "target_text": FORMS[form].format(item.word),
            "target_speech": self.codes[said],
            "extra_info": info,
        }


def _write_audio(path: Path, wave: np.ndarray) -> None:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, SAMPLE_RATE)
