"""What a trained model is worth: answers to held-out questions, and how likely it finds held-out demonstrations."""

import random
from typing import Any

import torch
from evidence.loop import log_probs
from evidence.sampler import sample
from evidence.settings import MOST_TOKENS
from evidence.world import Question, World

from wavalign_ext.speech.layout import TEXT

ANSWERS, UNTAUGHT, TARGETS, BATCH = 320, 60, 120, 95
TEMPERATURE, TOP_P = 0.7, 0.9


def questions(world: World) -> list[Question]:
    """The same for every run: ``ANSWERS`` about taught facts, then ``UNTAUGHT`` about others."""
    found = []
    for taught, count in ((True, ANSWERS), (False, UNTAUGHT)):
        asked = world.questions("held_out", taught=taught)
        random.Random(7).shuffle(asked)
        found += asked[:count]
    return found


def evaluate(world: World, model: Any, seed: int) -> dict[str, list[dict[str, float]]]:
    """``answers``: a row for each held-out question; ``targets``: one for each held-out demonstration."""
    model.eval()
    generator = torch.Generator().manual_seed(50_000 + seed)
    asked, answers = questions(world), []
    for first in range(0, len(asked), BATCH):
        prompts = [question.prompt for question in asked[first : first + BATCH]]
        draw = {"temperature": TEMPERATURE, "top_p": TOP_P, "generator": generator}
        answers += sample(model, prompts, eos=world.eos, most=MOST_TOKENS, **draw)
    rows = []
    for number, (question, ids) in enumerate(zip(asked, answers, strict=True)):
        split, found = world.layout.split(ids), world.score(ids, question)
        row = {"question": number, "taught": float(question.taught), "score": found.score, "right": float(found.right)}
        row |= {f"form_{form}": float(found.form == form) for form in world.forms}
        row |= {"lively": world.lively(split.codes), "errors": float(bool(split.errors)), "cut": float(not split.ended)}
        rows.append(row)
    return {"answers": rows, "targets": likelihood(world, model)}


@torch.inference_mode()
def likelihood(world: World, model: Any) -> list[dict[str, float]]:
    """NLL by modality of held-out demonstrations, mean over a demonstration's tokens."""
    rng = random.Random(8)
    asked = [question for question in questions(world) if question.taught][:TARGETS]
    rows = [(question.prompt, world.demonstration(question, rng)) for question in asked]
    found = []
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        for number, (logp, (_, target)) in enumerate(zip(log_probs(model, part), part, strict=True)):
            text = world.layout.modality(torch.tensor(target)) == TEXT
            own = -logp[: len(target)]
            row = {"target": first + number, "nll_text": own[text].mean(), "nll_speech": own[~text].mean()}
            found.append({name: float(value) for name, value in row.items()})
    return found
