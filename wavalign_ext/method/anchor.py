"""Anchor rows: each prompt's target response joins the optimiser step of its rollouts.

Pure functions on tensors and lists; the trainer moves their results through verl's TransferQueue.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorStack

from wavalign_ext.method.token_weights import PADDING


def supervised_row(
    prompt_ids: Sequence[int],
    target_ids: Sequence[int],
    kind: int,
    modality: torch.Tensor,
    drawn: torch.Tensor | None = None,
) -> dict[str, Any]:
    """A row that no rollout made, with every field of a rollout that verl's actor update reads.

    ``drawn``: bool (T,), which ids of the target a model would draw; forced ones take no part. None: all.

    1-D int64 ids and masks, 1-D float32 log-probs (all 0: no policy sampled this row), 0-d row kind, temperature 1.
    """
    prompt = torch.as_tensor(prompt_ids, dtype=torch.int64)
    response = torch.as_tensor(target_ids, dtype=torch.int64)
    mask = torch.full_like(response, int(kind != PADDING))
    if drawn is not None:
        mask *= drawn
    zeros = torch.zeros(len(response), dtype=torch.float32)
    input_ids = torch.cat([prompt, response])
    return {
        "prompts": prompt,
        "responses": response,
        "input_ids": input_ids,
        "position_ids": torch.arange(len(input_ids)),
        "response_mask": mask,
        "loss_mask": mask,
        "old_log_probs": zeros,
        "rollout_log_probs": zeros,
        "ref_log_prob": zeros,
        "advantages": zeros,
        "modality": modality.to(torch.int64),
        "row_kind": torch.tensor(kind),
        "temperature": torch.tensor(1.0),
        "multi_modal_inputs": {},
    }


def padding_row(*token_ids: int) -> dict[str, Any]:
    """A row that takes part in no term of the loss: ``token_ids`` are its prompt and its response."""
    return supervised_row(token_ids, token_ids, PADDING, torch.zeros(len(token_ids), dtype=torch.int64))


def rows_to_tensordict(rows: Sequence[dict[str, Any]]) -> TensorDict:
    """Stack rows as TransferQueue returns them: 0-d tensors dense, 1-d tensors jagged, the rest as objects."""
    columns: dict[str, Any] = {}
    for name in rows[0]:
        column = [row[name] for row in rows]
        if not isinstance(column[0], torch.Tensor):
            columns[name] = NonTensorStack(*column)  # pyright: ignore[reportAbstractUsage]
        elif column[0].dim() == 0:
            columns[name] = torch.stack(column)
        else:
            columns[name] = torch.nested.as_nested_tensor(column, layout=torch.jagged)
    return TensorDict(columns, batch_size=len(rows))


@dataclass(frozen=True)
class MiniBatches:
    """Row numbers of each mini-batch, and the row count, common to all, that they are padded to."""

    rows: list[list[int]]
    padded_size: int


def split_mini_batches(groups: Sequence[Sequence[int]], prompts_per_mini_batch: int, multiple: int) -> MiniBatches:
    """Deal whole prompts to mini-batches; every mini-batch is then padded to the same multiple of ``multiple`` rows.

    Args:
        groups: the row numbers of each prompt: its rollouts and its anchor.
        prompts_per_mini_batch: verl's ``ppo_mini_batch_size``, in prompts.
        multiple: what the row count must divide by: ranks, times the micro-batch size unless that is dynamic.
    """
    count = math.ceil(len(groups) / prompts_per_mini_batch)
    dealt = [[row for group in groups[first::count] for row in group] for first in range(count)]
    biggest = max(len(rows) for rows in dealt)
    return MiniBatches(dealt, math.ceil(biggest / multiple) * multiple)
