"""The warm start of the model that hears: what its loss is of, and what disturbing a row leaves whole."""

import random
from pathlib import Path

import pytest
import torch
from ears_world import LAYOUT, build, features
from transformers import AutoModelForCausalLM, AutoTokenizer

from wavalign_ext import models
from wavalign_ext.models.ears.warmstart import HeardExample, loss
from wavalign_ext.pocket.warmstart import WarmStart
from wavalign_ext.speech.layout import ResolvedLayout, load_layout

CLEAN = WarmStart(noise=0.0, text_weight=3.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("ears"))


@pytest.fixture(scope="module")
def layout(world: Path) -> ResolvedLayout:
    return load_layout(LAYOUT).resolve(AutoTokenizer.from_pretrained(world / "model"))


def example(layout: ResolvedLayout, seed: int, frames: int, codes: int) -> HeardExample:
    prompt = [5, *[layout.user_speech_start] * frames, 6]
    target = layout.target([7, 8], [(seed + n) % 16 for n in range(codes)])
    return HeardExample(prompt, target, "seven eight", "kind", features(seed, frames))


def test_the_loss_is_of_the_targets_alone(world: Path, layout: ResolvedLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a plain sum over each row by itself."""
    monkeypatch.setattr("wavalign_ext.models.ears.warmstart.NOISE", 0.0)
    models.register()
    model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32).eval()
    rows = [example(layout, 0, 9, 5), example(layout, 1, 4, 12)]
    total = weight = 0.0
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.target_ids])
        logp = model(ids, audio_features=row.heard).logits[0, :-1].log_softmax(-1)
        for place in range(len(row.prompt_ids), ids.shape[1]):
            token = int(ids[0, place])
            w = 3.0 if int(layout.modality([token])) == 0 else 1.0
            total, weight = total - w * logp[place - 1, token], weight + w
    found, weights = loss(model, rows, layout, CLEAN, random.Random(0))
    torch.testing.assert_close(found, total, rtol=1e-5, atol=1e-6)
    assert float(weights) == weight
    found.backward()
    assert all(w.grad is not None and w.grad.any() for w in model.audio_projection.parameters())


def test_vectors_are_lost_with_their_placeholders(
    world: Path, layout: ResolvedLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Stop(Exception):
        pass

    class Model:
        def embed(self, ids: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
            seen.append((int((ids == layout.user_speech_start).sum()), len(heard)))
            raise Stop

    for seed in range(5):
        with pytest.raises(Stop):
            loss(Model(), [example(layout, 0, 30, 5)], layout, WarmStart(noise=0.5), random.Random(seed))
    assert all(placeholders == vectors for placeholders, vectors in seen)
    assert all(0 < vectors < 30 for _, vectors in seen)
