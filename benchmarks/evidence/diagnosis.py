"""The diagnosis that the paper argues from: what the joint gradient is made of, and where a trained model has moved.

The joint preference at ρ = 1 is a sum over tokens, so its gradient is that of the text tokens plus that of the speech
tokens. Norms and cosines of the two, and of the anchor's gradient, are taken for one batch of rollouts of the model.
How far a model has moved is read off teacher-forced log-probs of the start's own answers, token by token, against the
start (arXiv 2604.14932, Figure 2).
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from evidence.loop import GROUPS, Gains, Trained, judged, log_probs, loss_inputs, schedule
from evidence.sampler import sample
from evidence.settings import CONDITIONS, MOST_TOKENS, RECIPES, ROLLOUTS
from evidence.world import World

from wavalign_ext.method.advantage import group_advantages
from wavalign_ext.method.loss import LossCoefficients, combined_loss
from wavalign_ext.speech.layout import TEXT

LOSS = LossCoefficients(kl_text=0.0, kl_speech=0.0)


def diagnose(world: World, trained: Trained, condition_name: str, seed: int) -> dict[str, float]:
    """Norms, cosines, the variance of rewards within a prompt, and the mean change of log-probs by modality."""
    condition, model = CONDITIONS[condition_name], trained.model.train()
    generator, rng = torch.Generator().manual_seed(90_000 + seed), np.random.default_rng(90_000 + seed)
    asked = schedule(world, condition, 500 + seed, 1)[0]
    prompts = [asked[n][0].prompt for n in GROUPS]
    answers = sample(model, prompts, eos=world.eos, most=MOST_TOKENS, generator=generator)
    rewards, _ = judged(world, answers, asked, condition, rng)
    gains = group_advantages(torch.tensor(rewards, dtype=torch.float32), GROUPS)
    rows = list(zip(prompts, answers, strict=True)) + [(question.prompt, target) for question, target in asked]
    responses = [ids for _, ids in rows]
    wav = RECIPES["joint_anchor"].config()
    inputs = loss_inputs(world, wav, condition, log_probs(model, rows), responses, Gains(gains, gains))
    text = world.layout.modality(_padded(responses, world.layout.pad_id)) == TEXT
    parts = {
        "text": _gradient(model, inputs, 1.0, text),
        "speech": _gradient(model, inputs, 1.0, ~text),
        "anchor": _gradient(model, inputs, 0.0, torch.ones_like(text)),
    }
    found = {f"norm_{name}": float(part.norm()) for name, part in parts.items()}
    for one, other in (("text", "speech"), ("text", "anchor"), ("speech", "anchor")):
        found[f"cosine_{one}_{other}"] = float(torch.cosine_similarity(parts[one], parts[other], dim=0))
    found["reward_variance"] = float(rewards.reshape(-1, ROLLOUTS).var(1).mean())
    return found | moved(world, model, seed)


@torch.inference_mode()
def moved(world: World, model: Any, seed: int) -> dict[str, float]:
    """Mean change, and mean size of the change, of log p per token of the start's answers, by modality."""
    start = world.start().eval()
    asked = world.questions("rl", taught=True)[:64]
    generator = torch.Generator().manual_seed(70_000 + seed)
    prompts = [question.prompt for question in asked]
    answers = sample(start, prompts, eos=world.eos, most=MOST_TOKENS, generator=generator)
    rows = list(zip(prompts, answers, strict=True))
    change = log_probs(model.eval(), rows) - log_probs(start, rows)
    modality = world.layout.modality(_padded(answers, world.layout.pad_id))
    there = torch.arange(change.shape[1]) < torch.tensor([len(ids) for ids in answers])[:, None]
    found = {}
    for name, mask in (("text", there & (modality == TEXT)), ("speech", there & (modality != TEXT))):
        found |= {f"change_{name}": float(change[mask].mean()), f"size_{name}": float(change[mask].abs().mean())}
    return found


def _padded(rows: list[list[int]], pad: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True, padding_value=pad)


def _gradient(model: Any, inputs: Any, lam: float, tokens: torch.Tensor) -> torch.Tensor:
    """Of the loss at this λ, preference on ``tokens`` (R, T) alone; all parameters in one vector."""
    chosen = dataclasses.replace(inputs, preference_weight=inputs.preference_weight * tokens)
    loss = combined_loss(chosen, lam, LOSS).loss
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(grads, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])
