"""The supervised start of the embedded two-stream model, stopped while reinforcement still has work to do."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from wavalign_ext.speech.parallel import ParallelLayout


@dataclass(frozen=True)
class Start:
    """How long and how: it stops at a share of ``target`` right answers, or after ``most_steps``."""

    batch: int = 32
    most_steps: int = 900
    first_check: int = 240
    check_every: int = 40
    target: float = 0.42
    learning_rate: float = 1.5e-3
    warm_up: int = 60
    averaging: float = 0.98  # of the weights, per step; what is checked and kept
    text_weight: float = 6.0
    noise: float = 0.08  # share of question units that are replaced; 0.6 of it is dropped as well
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """One spoken question: its flat prompt and answer, the answer in words, and what it is a case of."""

    prompt: list[int]
    target: list[int]
    answer: str
    kind: str


def train(
    model: Any,
    examples: Sequence[Example],
    layout: ParallelLayout,
    start: Start,
    check: Callable[[Any], dict[str, float]],
) -> list[dict[str, Any]]:
    """Teach ``model`` in place by cross-entropy on what an answer draws; its average over steps is kept.

    ``check`` gives the share of right answers by kind; what is answered worse is asked more often. Returns what every
    check found.
    """
    rng, history = random.Random(start.seed), []
    by_kind: dict[str, list[Example]] = {}
    for example in examples:
        by_kind.setdefault(example.kind, []).append(example)
    shares = dict.fromkeys(by_kind, 1.0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(start.averaging))
    optimizer = torch.optim.AdamW(model.parameters(), lr=start.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / start.warm_up, total_iters=start.warm_up)
    model.train()
    for step in tqdm(range(1, start.most_steps + 1), "warm start", unit="step"):
        if step % 8 == 1:
            kinds = rng.choices(list(by_kind), list(shares.values()), k=8 * start.batch)
            drawn = sorted((rng.choice(by_kind[kind]) for kind in kinds), key=lambda e: len(e.prompt) + len(e.target))
            batches = [drawn[n : n + start.batch] for n in range(0, len(drawn), start.batch)]
            rng.shuffle(batches)
        loss = _loss(model, batches.pop(), layout, start, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm_up.step()
        average.update_parameters(model)
        if step < start.first_check or step % start.check_every:
            continue
        right = check(average.module.eval())
        exact = float(np.mean(list(right.values())))
        history.append({"step": step, "exact": round(exact, 3), "loss": round(loss.item(), 3), **right})
        if exact >= start.target:
            break
        shares = {kind: 0.5 * share + 0.5 * (1.1 - right[kind]) for kind, share in shares.items()}
    model.load_state_dict(average.module.state_dict())
    model.eval()
    return history


def _loss(model: Any, batch: Sequence[Example], layout: ParallelLayout, start: Start, rng: random.Random) -> Tensor:
    """Mean −log p of the drawn ids, a text token weighing ``text_weight``."""
    rows = [(_disturbed(example.prompt, layout, start.noise, rng), example.target) for example in batch]
    width = max(len(prompt) + len(target) for prompt, target in rows)
    ids = torch.tensor(layout.padding * (width // 2)).repeat(len(rows), 1)
    weights = torch.zeros(len(rows), width)
    for row, (prompt, target) in enumerate(rows):
        ids[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
        weights[row, len(prompt) : len(prompt) + len(target)] = layout.drawn(target).float()
    weights[:, 0::2] *= start.text_weight
    logits = model(ids[:, 0::2], ids[:, 1::2]).logits
    total = torch.zeros(())
    for stream, first in ((0, 0), (1, layout.speech_start)):
        wanted, weight = ids[:, 2 + stream :: 2], weights[:, 2 + stream :: 2]
        said = weight > 0
        losses = torch.nn.functional.cross_entropy(logits[stream][:, :-1][said], wanted[said] - first, reduction="none")
        total = total + (losses * weight[said]).sum()
    return total / weights.sum()


def _disturbed(prompt: list[int], layout: ParallelLayout, noise: float, rng: random.Random) -> list[int]:
    """The prompt as a worse microphone would give it: some units of the question replaced, some lost."""
    heard = range(layout.user_speech_start, layout.user_speech_end)
    out: list[int] = []
    for text, audio in zip(prompt[0::2], prompt[1::2], strict=True):
        if audio in heard and rng.random() < 0.6 * noise:
            continue
        out += [text, rng.choice(heard) if audio in heard and rng.random() < noise else audio]
    return out
