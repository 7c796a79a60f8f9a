"""Whether the pairs of the data files can be compared, before Ray starts."""

import math
from typing import Any

import torch
from omegaconf import DictConfig

from wavalign_ext.config import ConfigError, WavAlignConfig
from wavalign_ext.data.pairs.rows import answer_pair


def check_pair(
    row: dict[str, Any], where: str, config: DictConfig, wav: WavAlignConfig, tokenizer: Any, layout: Any
) -> None:
    """Check one row of a run on pairs. Raises :class:`ConfigError`, naming the row by ``where``."""
    from wavalign_ext.method.token_weights import modality_masks

    pair = answer_pair(row)
    if pair is None:
        raise ConfigError(
            f"{where}: no pair: rejected_text and rejected_speech must be there, and chosen_… or target_… of both: "
            "wavalign pairs makes them"
        )
    preferred, made = wav.preference.tokens, {}
    for side, (text, codes) in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if not ids:
            raise ConfigError(f"{where}: {side} has no text token: its text is {text!r}; leave the row out")
        try:
            made[side] = layout.target(ids, codes)
        except ValueError as error:
            raise ConfigError(f"{where}: {side}: {error}") from error
        longest = config.data.max_response_length
        if len(made[side]) > longest:
            raise ConfigError(
                f"{where}: {side} has {len(made[side])} tokens, more than data.max_response_length={longest}: raise "
                "it, or leave the row out"
            )
        kinds = layout.modality(torch.tensor(made[side]))
        on = dict(
            zip(("text", "speech"), modality_masks(kinds, layout.drawn(made[side]), wav.boundary_modality), strict=True)
        )
        if preferred != "all" and not on[preferred].any():
            raise ConfigError(
                f"{where}: {side} has no {preferred} token, and wavalign.preference.tokens={preferred} acts on no other"
            )
    if made["chosen"] == made["rejected"]:
        raise ConfigError(
            f"{where}: chosen and rejected are the same answer, {pair.chosen[0]!r}: nothing is preferred; leave it out"
        )
    if wav.mixing.type == "adaptive" and any(math.isnan(score) for score in pair.scores):
        raise ConfigError(
            f"{where}: no chosen_score and rejected_score, which an adaptive λ is read from: add them, or set "
            "wavalign.mixing={type: fixed, value: …}"
        )
