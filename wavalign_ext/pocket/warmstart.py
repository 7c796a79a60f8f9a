"""The supervised start: a small Qwen2 taught to answer, and stopped while reinforcement still has work to do."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from wavalign_ext.layout import ResolvedLayout


@dataclass(frozen=True)
class WarmStart:
    """How the model is made and how long it is taught; ``kind_weights`` balance what is asked."""

    hidden: int = 192
    layers: int = 4
    heads: int = 6
    feed_forward: int = 512
    batch: int = 32
    steps: int = 450
    learning_rate: float = 1.5e-3
    warm_up: int = 60
    text_weight: float = 4.0
    noise: float = 0.08  # share of question units that are replaced; 0.6 of it is dropped as well
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """One spoken question with its target: token ids, the answer in words, and what it is a case of."""

    prompt_ids: list[int]
    target_ids: list[int]
    answer: str
    kind: str


# How often each kind is asked, relative to its even share; found by experiment so that all kinds end half learnt.
KIND_WEIGHTS = {
    "sum": 1.0,
    "difference": 1.0,
    "day": 0.6,
    "month": 0.8,
    "number": 1.2,
    "opposite": 2.0,
    "capital": 1.0,
    "color": 0.5,
}


def new_model(vocab_size: int, layout: ResolvedLayout, settings: WarmStart) -> Qwen2ForCausalLM:
    """An untrained model of about two million parameters."""
    torch.manual_seed(settings.seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads // 2,
            intermediate_size=settings.feed_forward,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=layout.eos_ids[0],
            pad_token_id=layout.pad_id,
        )
    )


def train(model: Qwen2ForCausalLM, examples: Sequence[Example], layout: ResolvedLayout, settings: WarmStart) -> None:
    """Teach ``model`` in place: cross-entropy on targets, text tokens weighing more, cosine learning rate."""
    rng = random.Random(settings.seed)
    by_kind: dict[str, list[Example]] = {}
    for example in examples:
        by_kind.setdefault(example.kind, []).append(example)
    kinds, weights = list(by_kind), [KIND_WEIGHTS[kind] for kind in by_kind]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    model.train()
    for _ in tqdm(range(settings.steps), "warm start", unit="step"):
        batch = [rng.choice(by_kind[kind]) for kind in rng.choices(kinds, weights, k=settings.batch)]
        loss = _loss(model, batch, layout, settings, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def sample(
    model: Qwen2ForCausalLM, prompts: Sequence[list[int]], layout: ResolvedLayout, *, temperature: float, top_p: float
) -> list[list[int]]:
    """One sampled response per prompt, in order; 128 at a time."""
    answers: list[list[int]] = []
    for start in range(0, len(prompts), 128):
        chosen = prompts[start : start + 128]
        width = max(map(len, chosen))
        ids = torch.full((len(chosen), width), layout.pad_id or 0)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(chosen):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        out: Any = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            max_new_tokens=90,
            pad_token_id=layout.pad_id,
        )
        answers += [[i for i in row if i != layout.pad_id] for row in out[:, width:].tolist()]
    return answers


def accuracy(
    model: Qwen2ForCausalLM,
    examples: Sequence[Example],
    layout: ResolvedLayout,
    tokenizer: Any,
    *,
    temperature: float = 0.7,
    top_p: float = 0.9,
    group: int = 4,
) -> dict[str, Any]:
    """Share of sampled answers whose words are exactly right, overall and by kind, and of groups that are mixed."""
    prompts = [example.prompt_ids for example in examples for _ in range(group)]
    answers = sample(model, prompts, layout, temperature=temperature, top_p=top_p)
    texts = [tokenizer.decode(layout.split(ids).text_ids) for ids in answers]
    right = np.array(
        [text == e.answer for text, e in zip(texts, (e for e in examples for _ in range(group)), strict=True)]
    )
    by_row = right.reshape(len(examples), group).mean(1)
    kinds = sorted({example.kind for example in examples})
    return {
        "exact": float(right.mean()),
        "mixed_groups": float(((by_row > 0) & (by_row < 1)).mean()),
        "by_kind": {k: round(float(by_row[[e.kind == k for e in examples]].mean()), 3) for k in kinds},
        "temperature": temperature,
        "top_p": top_p,
        "group": group,
        "questions": len(examples),
    }


def _rate(step: int, settings: WarmStart) -> float:
    warm = min(1.0, (step + 1) / settings.warm_up)
    return warm * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / settings.steps)))


def _loss(
    model: Qwen2ForCausalLM, batch: Sequence[Example], layout: ResolvedLayout, settings: WarmStart, rng: random.Random
) -> torch.Tensor:
    rows = [(_disturbed(example.prompt_ids, layout, settings.noise, rng), example.target_ids) for example in batch]
    width = max(len(prompt) + len(target) for prompt, target in rows)
    ids, wanted = torch.full((len(rows), width), layout.pad_id or 0), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, target) in enumerate(rows):
        ids[row, : len(prompt) + len(target)] = torch.tensor(prompt + target)
        wanted[row, len(prompt) : len(prompt) + len(target)] = True
    hidden: Any = model.model(input_ids=ids).last_hidden_state
    labels = ids[:, 1:][wanted[:, 1:]]
    losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted[:, 1:]]), labels, reduction="none")
    weights = torch.where(layout.modality(labels) == 0, settings.text_weight, 1.0)
    return (losses * weights).sum() / weights.sum()


def _disturbed(prompt: list[int], layout: ResolvedLayout, noise: float, rng: random.Random) -> list[int]:
    """The prompt as a worse microphone would give it: some units of the question replaced, some lost."""
    out = []
    for i in prompt:
        if layout.heard_start <= i < layout.heard_end:
            if rng.random() < 0.6 * noise:
                continue
            if rng.random() < noise:
                i = rng.randrange(layout.heard_start, layout.heard_end)
        out.append(i)
    return out
