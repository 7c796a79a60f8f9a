"""The pocket model's world as the study needs it: questions, demonstrations, scores; all from the built assets."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from wavalign_ext.pocket.domain import FORMS, LOOSE_SCORE, Item, is_right, items
from wavalign_ext.pocket.rows import answer_audio, demonstration
from wavalign_ext.pocket.voices import LIVELY
from wavalign_ext.speech.audio import load_audio
from wavalign_ext.speech.chat import prompt_ids
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.layout import load_layout

SCALE = (1.0, 5.0)
HELD_OUT = {("held_out", taught): "held_out" for taught in (True, False)}
SPLITS = {("rl", True): "train", ("rl", False): "untaught"} | HELD_OUT


@dataclass(frozen=True)
class Question:
    """One question by one voice. ``fact`` is the number of what it asks for; ``taught``: the warm start had it."""

    prompt: list[int]
    fact: int
    role: str
    taught: bool


@dataclass(frozen=True)
class Score:
    """``score`` on the reward's scale, the form that the answer has, and whether it is right."""

    score: float
    form: str
    right: bool


class World:
    """The assets in ``folder``, read once."""

    forms = tuple(FORMS)

    def __init__(self, folder: Path) -> None:
        self.folder, self.items = folder, items()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.layout: Any = load_layout("pocket").resolve(self.tokenizer)
        self.eos = self.layout.eos_ids[0]
        self._lively = np.array(json.loads((folder / "codec" / "manner.json").read_text())) > 0
        self._codec = load_codec({"type": "mel_vq", "path": folder / "codec"})
        self._targets: dict[tuple[str, str], list[int]] = {}

    @property
    def weights(self) -> str:
        """Names the start: the first digits of its file's SHA-256."""
        with open(self.folder / "model" / "model.safetensors", "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]

    @classmethod
    def load(cls) -> "World":
        from wavalign_ext.pocket.build import build

        return cls(build())

    def start(self) -> Any:
        """A fresh copy of the warm start."""
        return Qwen2ForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32)

    def questions(self, role: str, taught: bool) -> list[Question]:
        """Each spoken question of the role once, in known phrasings, in the data's order."""
        found: dict[tuple[str, str], Question] = {}
        for row in pandas.read_parquet(self.folder / "data" / f"{SPLITS[role, taught]}.parquet").to_dict("records"):
            info = row["extra_info"]
            if info["taught"] == taught:
                fact = next(n for n, item in enumerate(self.items) if _asks(info, item))
                prompt = list(prompt_ids(self.tokenizer, list(row["prompt"])))
                found.setdefault((info["voice"], info["question"]), Question(prompt, fact, role, taught))
        return list(found.values())

    def demonstration(self, question: Question, rng: random.Random) -> list[int]:
        """A lively target in a form drawn by its share."""
        form, _ = demonstration(rng)
        word = self.items[question.fact].word
        if (word, form) not in self._targets:
            wave = load_audio(self.folder / answer_audio((word, form, LIVELY)), self._codec.sample_rate)
            text = self.tokenizer.encode(FORMS[form].format(word), add_special_tokens=False)
            self._targets[word, form] = self.layout.target(text, self._codec.encode(wave))
        return self._targets[word, form]

    def score(self, ids: Sequence[int], question: Question) -> Score:
        """As the term ``graded`` has it."""
        item: Item = self.items[question.fact]
        text = self.tokenizer.decode(self.layout.split(ids).text_ids)
        form = next((name for name, form in FORMS.items() if text == form.format(item.word)), "other")
        loose = LOOSE_SCORE if item.word in text.split() else SCALE[0]
        return Score(item.graded().get(text, loose), form, is_right(text, item.word))

    def lively(self, codes: Sequence[int]) -> float:
        """Share of codes more frequent in the lively manner; NaN without codes."""
        return float(self._lively[list(codes)].mean()) if len(codes) else float("nan")


def _asks(info: dict[str, Any], item: Item) -> bool:
    return info["kind"] == item.kind and info["question"].endswith(f" {item.blank}")
