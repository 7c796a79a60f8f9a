"""Answers of a small model, many at once: the prompts of a group are read once, and finished rows leave the batch."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


@torch.inference_mode()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    eos: int,
    most: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[int]]:
    """One answer for each prompt, its eos included where it has one; at most ``most`` tokens."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    number = {prompt: n for n, prompt in enumerate(distinct)}
    which = torch.tensor([number[tuple(prompt)] for prompt in prompts])
    width = max(map(len, distinct))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in distinct])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in distinct])
    cache, decoder = DynamicCache(), model.get_decoder()
    place = (mask.cumsum(1) - 1).clamp(min=0)
    read = decoder(input_ids=ids, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True)
    cache.batch_select_indices(which)
    hidden, mask, place = read.last_hidden_state[which, -1], mask[which], mask.sum(1)[which]
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    for length in range(1, most + 1):
        drawn = _draw(model.get_output_embeddings()(hidden) / temperature, top_p, generator)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            answers[row].append(token)
        on = drawn != eos
        if length == most or not on.any():
            break
        if not on.all():
            left = on.nonzero()[:, 0]
            cache.batch_select_indices(left)
            rows, drawn, mask, place = [rows[n] for n in left.tolist()], drawn[left], mask[left], place[left]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        step = {"attention_mask": mask, "position_ids": place[:, None], "past_key_values": cache, "use_cache": True}
        hidden, place = decoder(input_ids=drawn[:, None], **step).last_hidden_state[:, -1], place + 1
    return answers


def _draw(logits: torch.Tensor, top_p: float, generator: torch.Generator) -> torch.Tensor:
    share, token = torch.softmax(logits, -1).sort(-1, descending=True)
    share = share * (share.cumsum(-1) - share < top_p)  # the fewest tokens that reach top_p
    return token.gather(1, torch.multinomial(share, 1, generator=generator))[:, 0]
