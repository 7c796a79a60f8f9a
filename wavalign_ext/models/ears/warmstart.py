"""The supervised start of the embedded model that hears: the pocket model's own, with vectors in its prompts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wavalign_ext.pocket.warmstart import Example, WarmStart
from wavalign_ext.speech.layout import ResolvedLayout

START = WarmStart(most_steps=400, first_check=80)
NOISE = 0.3  # added to vectors whose numbers are about 1


@dataclass(frozen=True)
class HeardExample(Example):
    """One question as its prompt's ids, a placeholder for each vector, and the vectors (frames, size)."""

    heard: Tensor = field(default_factory=lambda: torch.zeros(0, 0))


def loss(
    model: Any, batch: Sequence[HeardExample], layout: ResolvedLayout, settings: WarmStart, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """(sum of −log p of the targets' ids, a text token weighing ``text_weight``; sum of the weights)."""
    rows = [(*_disturbed(example, layout, settings.noise, rng), example.target_ids) for example in batch]
    width = max(len(prompt) + len(target) for prompt, _, target in rows)
    ids, wanted = torch.full((len(rows), width), layout.pad_id or 0), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, _, target) in enumerate(rows):
        ids[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
        wanted[row, len(prompt) : len(prompt) + len(target)] = True
    embedded = model.embed(ids, torch.cat([heard for _, heard, _ in rows]))
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    labels = ids[:, 1:][wanted[:, 1:]]
    losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted[:, 1:]]), labels, reduction="none")
    weights = torch.where(layout.modality(labels) == 0, settings.text_weight, 1.0)
    return (losses * weights).sum(), weights.sum()


def _disturbed(
    example: HeardExample, layout: ResolvedLayout, noise: float, rng: random.Random
) -> tuple[list[int], Tensor]:
    """Prompt and vectors as a worse microphone would give them: all a little off, some lost."""
    kept = [n for n in range(len(example.heard)) if rng.random() >= noise]
    lost, prompt = len(example.heard) - len(kept), list(example.prompt_ids)
    for _ in range(lost):
        prompt.remove(layout.user_speech_start)
    heard = example.heard[kept]
    noise_of_its_own = torch.Generator().manual_seed(rng.getrandbits(63))
    return prompt, heard + NOISE * torch.randn(heard.shape, generator=noise_of_its_own)
