"""The embedded model's ear: it is a Whisper checkpoint, it learns to spell, and it hears what it was taught on."""

import random
from pathlib import Path

import numpy as np
import torch

from wavalign_ext.models.ears.encoder import EarTraining, disturbed, train_encoder
from wavalign_ext.speech.encoders import load_encoder

TINY = EarTraining(size=16, layers=1, heads=2, mels=16, positions=48, steps=120, batch=4)
RATE = 16000


def tones(word: str) -> np.ndarray:
    """A letter is 0.12 s of a tone of its own."""
    t = np.arange(int(0.12 * RATE)) / RATE
    return np.concatenate([0.3 * np.sin(2 * np.pi * (200 + 130 * (ord(c) - 97)) * t) for c in word]).astype(np.float32)


def test_it_learns_and_is_loaded_as_any_whisper(tmp_path: Path) -> None:
    words = ["ace", "bad", "cab", "fed", "gag", "age", "dab", "bed"]
    waves = [tones(word) for word in words]
    one = EarTraining(**{**TINY.__dict__, "steps": 20})
    early, late = (train_encoder(waves, words, tmp_path / str(s.steps), s) for s in (one, TINY))
    assert late < 0.8 * early
    encoder = load_encoder({"type": "whisper", "path": tmp_path / "120", "stack": 4})
    heard = encoder.encode(waves[0])
    assert heard.shape == (-(-len(waves[0]) // 1280), 64) and encoder.size == 64
    assert (encoder.encode(waves[1])[:4] - heard[:4]).abs().max() > 0.05
    again = train_encoder(waves, words, tmp_path / "again", one)
    assert again == early  # seeded


def test_what_is_disturbed_keeps_its_shape_and_loses_some() -> None:
    torch.manual_seed(0)
    mels = torch.ones(8, 16, 100)
    out = disturbed(mels, random.Random(0))
    assert out.shape == mels.shape and torch.equal(mels, torch.ones_like(mels))
    assert 0 < (out == 0).float().mean() < 0.5
