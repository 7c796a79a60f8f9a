"""The supervised start of the embedded two-stream model: the pocket model's own, with a loss over two streams."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wavalign_ext.pocket.warmstart import Example, WarmStart
from wavalign_ext.speech.parallel import ParallelLayout

START = WarmStart(learning_rate=1.5e-3, most_steps=900, first_check=240, text_weight=6.0)


def loss(
    model: Any, batch: Sequence[Example], layout: ParallelLayout, settings: WarmStart, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """(sum of −log p of the drawn ids, a text token weighing ``text_weight``; sum of the weights)."""
    rows = [(_disturbed(example.prompt_ids, layout, settings.noise, rng), example.target_ids) for example in batch]
    width = max(len(prompt) + len(target) for prompt, target in rows)
    ids = torch.tensor(layout.padding * (width // 2)).repeat(len(rows), 1)
    weights = torch.zeros(len(rows), width)
    for row, (prompt, target) in enumerate(rows):
        ids[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
        weights[row, len(prompt) : len(prompt) + len(target)] = layout.drawn(target).float()
    weights[:, 0::2] *= settings.text_weight
    logits = model(ids[:, 0::2], ids[:, 1::2]).logits
    total = torch.zeros(())
    for stream, first in ((0, 0), (1, layout.speech_start)):
        wanted, weight = ids[:, 2 + stream :: 2], weights[:, 2 + stream :: 2]
        said = weight > 0
        losses = torch.nn.functional.cross_entropy(logits[stream][:, :-1][said], wanted[said] - first, reduction="none")
        total = total + (losses * weight[said]).sum()
    return total, weights.sum()


def _disturbed(prompt: list[int], layout: ParallelLayout, noise: float, rng: random.Random) -> list[int]:
    """The prompt as a worse microphone would give it: some units of the question replaced, some lost."""
    heard = range(layout.user_speech_start, layout.user_speech_end)
    out: list[int] = []
    for text, audio in zip(prompt[0::2], prompt[1::2], strict=True):
        if audio in heard and rng.random() < 0.6 * noise:
            continue
        out += [text, rng.choice(heard) if audio in heard and rng.random() < noise else audio]
    return out
