"""Answers of a two-stream model drawn by transformers alone: for the warm start, and to compare vLLM with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@torch.no_grad()
def draw_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    most_frames: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> list[list[int]]:
    """One flat answer (2F,) for each flat prompt; F is at most ``most_frames``."""
    config = model.config
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    text, audio, mask = _left_padded(prompts, config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    over = torch.zeros(len(prompts), dtype=torch.bool)
    done, cache, said = over.clone(), DynamicCache(), []
    ends = torch.tensor(config.audio_end)
    for frame in range(most_frames):
        out = model(text, audio, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        words, sounds = (_draw(part[:, -1], temperature, top_p, generator) for part in out.logits)
        sounds = sounds + config.text_vocab if frame >= config.delay else torch.full_like(sounds, config.audio_blank)
        ended = torch.isin(sounds, ends)
        words = torch.where(over | ended, config.text_blank, words)
        over |= words == config.text_end
        said.append((words, sounds, ~done))
        done |= ended
        if bool(done.all()):
            break
        text, audio, positions = words[:, None], sounds[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], -1)
    frames = [torch.stack(column, -1) for column in zip(*said, strict=True)]
    flat = torch.stack(frames[:2], -1)
    return [flat[row][frames[2][row]].flatten().tolist() for row in range(len(prompts))]


def _left_padded(prompts: Sequence[Sequence[int]], config: Any) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(prompt) // 2 for prompt in prompts)
    text = torch.full((len(prompts), width), config.text_blank)
    audio, mask = torch.full_like(text, config.audio_blank), torch.zeros_like(text)
    for row, prompt in enumerate(prompts):
        frames = len(prompt) // 2
        text[row, width - frames :], audio[row, width - frames :] = torch.tensor(prompt).view(-1, 2).unbind(-1)
        mask[row, width - frames :] = 1
    return text, audio, mask


def _draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """One id for each row of (N, V)."""
    share = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = share.sort(-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
        share = torch.zeros_like(share).scatter_(-1, order, ordered)
    return torch.multinomial(share, 1, generator=generator).squeeze(-1)
