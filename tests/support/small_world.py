"""A layout, a tokenizer and two fitted codecs of 16 codes, made in a second, and dialogues in JSONL for them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from wavalign_ext.data.prepare.setup import Setup, set_up
from wavalign_ext.pocket.fit import fit_mel_vq, fit_units
from wavalign_ext.pocket.tokens import build_tokenizer
from wavalign_ext.speech.layout import load_layout

RATE, CODES = 16000, 16
WORDS = "one two three four five six seven eight nine ten is plus you are kind".split()


@dataclass(frozen=True)
class World:
    """Paths and codec arguments, as the command line takes them."""

    folder: Path
    layout: Path
    codec: dict[str, str]
    user_speech: dict[str, str]

    @property
    def options(self) -> list[str]:
        """For ``wavalign prepare``."""
        codecs = ["--codec", json.dumps(self.codec), "--input-codec", json.dumps(self.user_speech)]
        return ["--layout", str(self.layout), "--tokenizer", str(self.folder / "model"), *codecs]

    def setup(self) -> Setup:
        return set_up(str(self.layout), str(self.folder / "model"), self.codec, self.user_speech)


def build(folder: Path, **layout: Any) -> World:
    """Everything under ``folder``; ``layout`` changes keys of the layout."""
    node = {
        "name": "small",
        "speech": {"pattern": "<|audio_{}|>", "count": CODES},
        "user_speech": {"pattern": "<|heard_{}|>", "count": CODES},
        "begin": "<|begin_of_audio|>",
        "end": "<|end_of_audio|>",
        "schedule": [[1, 6], [2, 6]],
        "eos": ["<|im_end|>"],
        "pad": "<|endoftext|>",
        **layout,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(node))
    build_tokenizer([" ".join(WORDS)], load_layout(path)).save_pretrained(folder / "model")
    waves = [voice(seed) for seed in range(6)]
    fit_mel_vq(waves, folder / "codec", seed=0, codes=CODES)
    fit_units(waves, folder / "units", seed=0, units=CODES)
    specs = ({"type": name, "path": str(folder / part)} for name, part in (("mel_vq", "codec"), ("units", "units")))
    return World(folder, path, *specs)


def voice(seed: int, seconds: float = 0.6, rate: int = RATE) -> np.ndarray:
    """Something with a pitch and syllables, float32; another for each seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    pitch = rng.uniform(90, 250) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(1, 3) * t))
    buzz = sum(np.sin(2 * np.pi * n * np.cumsum(pitch) / rate) / n for n in range(1, 6))
    return (0.2 * buzz * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def record(path: Path, wave: np.ndarray, rate: int = RATE, subtype: str | None = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


def dialogue(question: str, answer: str, text: str = "three plus four is seven", **fields: Any) -> dict[str, Any]:
    """A line in the field names of the public release."""
    return {
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "audios": [question],
        "sft_target_text": text,
        "sft_target_audio": answer,
        "task_type": "s2s",
        **fields,
    }


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """One line per row; a str is written as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
