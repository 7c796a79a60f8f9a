"""How likely the policy finds the targets of the validation set: what the anchor is there to keep."""

from collections.abc import Sequence
from typing import Any

import torch

from wavalign_ext.method.token_weights import ANCHOR, modality_masks
from wavalign_ext.trainer.scoring import answer_row, prompt_builder, score_rows


def held_out_nll(trainer: Any) -> dict[str, float]:
    """``val-anchor/nll_text`` and ``nll_speech``: mean −log p per target token, teacher-forced, temperature 1."""
    rows = _target_rows(trainer)
    logp = torch.cat(score_rows(trainer, rows))
    modality, drawn = (torch.cat([row[name] for row in rows]) for name in ("modality", "response_mask"))
    masks = modality_masks(modality, drawn, trainer.wav.boundary_modality)
    return {
        f"val-anchor/nll_{name}": -logp[mask].mean().item()
        for name, mask in zip(("text", "speech"), masks, strict=True)
        if mask.any()
    }


def _target_rows(trainer: Any) -> list[dict[str, Any]]:
    numbers = range(len(trainer.val_targets))
    return target_rows(trainer, trainer.val_dataset, [trainer.val_targets[number] for number in numbers], numbers)


def target_rows(trainer: Any, dataset: Any, targets: Sequence[Any], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Anchor rows of a dataset's rows ``numbers``, whose targets these are; no rollout gives their prompts."""
    builder = prompt_builder(trainer)  # held-out prompts are those of the validation answers
    return [
        answer_row(trainer, builder, dataset[number], target, ANCHOR)
        for number, target in zip(numbers, targets, strict=True)
    ]
