"""The diagnosis the paper argues from: what the joint objective's gradient is made of.

The joint loss at ρ = 1 is a sum over tokens, so its gradient is the sum of a text part and a speech part:
g = g_text + g_speech. For checkpoints of a ``grpo_joint`` run, answers are sampled afresh and rewarded as in training;
the two parts, and the gradient of the anchor's loss, give norms and cosines. Per prompt, the text part's agreement with
that of all other prompts tells whether prompts that the gate shuts off had worse gradients.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from evidence.plan import PROMPTS
from tqdm import tqdm
from transformers import AutoTokenizer, Qwen2ForCausalLM

from wavalign_ext.method.advantage import group_advantages
from wavalign_ext.method.mixing import MixingController
from wavalign_ext.pocket import SAMPLE_RATE, pocket_dir
from wavalign_ext.pocket.warmstart import sample
from wavalign_ext.rewards import SpokenAnswer, build_terms
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.layout import ResolvedLayout, load_layout

ROLLOUTS, CHANNELS = 4, ("text", "speech")
SCALE = (1.0, 5.0)


def diagnose(model_folder: Path, seed: int) -> dict[str, list[dict[str, float]]]:
    """``{"step": [one row], "prompts": [a row per prompt]}`` for one model."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    layout = load_layout("pocket").resolve(tokenizer)
    model = Qwen2ForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    table: Any = pandas.read_parquet(pocket_dir() / "data" / "train.parquet").to_dict("records")
    rows = random.Random(seed).sample(table, PROMPTS)
    prompts = [_prompt(tokenizer, row) for row in rows]
    said = sample(model, [p for p in prompts for _ in range(ROLLOUTS)], layout, temperature=1.0, top_p=1.0)
    rewards = asyncio.run(_rewards(said, [row for row in rows for _ in range(ROLLOUTS)], layout, tokenizer))
    groups = [number for number in range(PROMPTS) for _ in range(ROLLOUTS)]
    advantages = group_advantages(torch.tensor(rewards), groups).tolist()

    parts = []
    for number in tqdm(range(PROMPTS), "gradients", unit="prompt", leave=False):
        chosen = range(number * ROLLOUTS, (number + 1) * ROLLOUTS)
        joint = [(prompts[number], said[i], advantages[i]) for i in chosen]
        target = layout.target(
            tokenizer.encode(rows[number]["target_text"], add_special_tokens=False), list(rows[number]["target_speech"])
        )
        parts.append({c: _gradient(model, joint, layout, c) for c in CHANNELS})
        parts[-1] |= {f"anchor_{c}": _gradient(model, [(prompts[number], target, 1.0)], layout, c) for c in CHANNELS}
    return {"step": [_of_step(parts, rewards)], "prompts": _of_prompts(parts, rewards)}


def _prompt(tokenizer: Any, row: dict[str, Any]) -> list[int]:
    messages = [dict(message) for message in row["prompt"]]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


async def _rewards(said: list[list[int]], rows: list[Any], layout: ResolvedLayout, tokenizer: Any) -> list[float]:
    """As the recipe has it: the right words, and a voice that says them."""
    codec = load_codec({"type": "mel_vq", "path": pocket_dir() / "codec"})
    recognizer = {"type": "pocketsphinx", "lm": str(pocket_dir() / "asr" / "answers.arpa")}
    mix = build_terms({"semantic": {"weight": 0.7}, "asr_agreement": {"weight": 0.3, "recognizer": recognizer}}, SCALE)
    found = []
    for ids, row in zip(said, rows, strict=True):
        split = layout.split(ids)
        result = await mix(
            SpokenAnswer(
                text=tokenizer.decode(split.text_ids, skip_special_tokens=True),
                speech_codes=tuple(split.codes),
                wave=codec.decode(split.codes) if split.codes else None,
                sample_rate=SAMPLE_RATE,
                question_text=row["extra_info"]["question"],
                question_wave=None,
                question_rate=SAMPLE_RATE,
                reference_text=row["target_text"],
                reference_wave=None,
                ended=split.ended,
                truncated=not split.ended,
            )
        )
        assert result.total is not None, result.reasons
        found.append(result.total)
    return found


def _gradient(
    model: Qwen2ForCausalLM, rows: list[tuple[list[int], list[int], float]], layout: ResolvedLayout, channel: str
) -> torch.Tensor:
    """−∇ Σ A·log p over one channel's tokens, each row divided by its length: that channel's part of the row mean."""
    total = torch.zeros(())
    for prompt, response, advantage in rows:
        if advantage == 0 or not response:
            continue
        ids = torch.tensor([prompt + response])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        logp = torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        text = layout.modality(response) == 0
        mask = text if channel == "text" else ~text
        total = total - advantage * (logp * mask).sum() / len(response) / len(rows)
    if not total.requires_grad:
        return torch.zeros(sum(p.numel() for p in model.parameters()))
    grads = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    pairs = zip(grads, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])


def _of_step(parts: list[dict[str, torch.Tensor]], rewards: list[float]) -> dict[str, float]:
    mean = {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
    by_prompt = np.array(rewards).reshape(-1, ROLLOUTS)
    anchor = mean["anchor_text"] + mean["anchor_speech"]
    return {
        "norm_text": mean["text"].norm().item(),
        "norm_speech": mean["speech"].norm().item(),
        "cosine_text_speech": _cosine(mean["text"], mean["speech"]),
        "cosine_text_anchor": _cosine(mean["text"], anchor),
        "cosine_speech_anchor": _cosine(mean["speech"], anchor),
        # How much of a channel is the same from prompt to prompt: 1 is all signal, 1/√prompts is all noise.
        **{f"signal_{c}": _signal([part[c] for part in parts]) for c in CHANNELS},
        "reward_mean": float(by_prompt.mean()),
        "reward_variance": float(by_prompt.var(1).mean()),
    }


def _of_prompts(parts: list[dict[str, torch.Tensor]], rewards: list[float]) -> list[dict[str, float]]:
    total = torch.stack([part["text"] for part in parts]).sum(0)
    rows = []
    for number, part in enumerate(parts):
        controller = MixingController()
        own = rewards[number * ROLLOUTS : (number + 1) * ROLLOUTS]
        controller.update(own, [0] * ROLLOUTS)
        assert controller.last is not None
        anchor = part["anchor_text"] + part["anchor_speech"]
        rows.append(
            {
                "gate": controller.last.raw,
                "variance": float(np.var(own)),
                "best": max(own),
                "agreement": _cosine(part["text"], total - part["text"]),
                "with_anchor": _cosine(part["text"], anchor),
            }
        )
    return rows


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    norms = a.norm() * b.norm()
    return (a @ b / norms).item() if norms > 0 else float("nan")


def _signal(gradients: list[torch.Tensor]) -> float:
    """‖mean of the gradients‖ over the root of their mean squared norm."""
    stacked = torch.stack(gradients)
    scale = stacked.pow(2).sum(1).mean().sqrt()
    return (stacked.mean(0).norm() / scale).item() if scale > 0 else float("nan")
