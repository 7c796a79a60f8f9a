"""Masks and denominators of the loss, as one weight stream per term.

Every mean that the loss takes (over a row's tokens, over rows, over modalities) is divided out here, once, over the
whole mini-batch, on the driver. The loss is then a plain sum over tokens, so it cannot depend on how the mini-batch is
cut into micro-batches, in which order its rows come, or on how many ranks share it.

Shapes: R rows of a mini-batch, T response tokens (right-padded).
"""

from dataclasses import dataclass

import torch

from wavalign_ext.config import AnchorConfig, PreferenceConfig, TokenChoice
from wavalign_ext.method.objectives import pair_weights
from wavalign_ext.speech.layout import BOUNDARY, SPEECH, TEXT

ROLLOUT, ANCHOR, PADDING = 0, 1, 2
ROW_FIELDS = ("preference_weight", "anchor_weight", "text_weight", "speech_weight")
"""The streams of :class:`TokenWeights` as columns of a row."""

AGGREGATIONS = ("seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm")


@dataclass(frozen=True)
class TokenWeights:
    """Weights of shape (R, T), each stream summing to 1 over the mini-batch, or to 0 where it is empty.

    With ``seq-mean-token-sum-norm`` a stream sums to the mean weight of a row, divided by the scale. With an objective
    over pairs ``preference`` is what makes a sum over tokens the mean over pairs (:func:`.objectives.pair_weights`).

    ``preference`` is on rollouts, ``anchor`` on anchor rows; ``text`` and ``speech`` are the plain means over each
    modality, among rollouts for rollouts and among anchors for anchors. They carry the KL terms and the metrics.
    """

    preference: torch.Tensor
    anchor: torch.Tensor
    text: torch.Tensor
    speech: torch.Tensor


def modality_masks(
    modality_RT: torch.Tensor, mask_RT: torch.Tensor, boundary_modality: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean masks (R, T) of text and of speech tokens; boundaries go where ``boundary_modality`` says."""
    mask_RT = mask_RT.bool()
    text, speech = (modality_RT == TEXT) & mask_RT, (modality_RT == SPEECH) & mask_RT
    boundary = (modality_RT == BOUNDARY) & mask_RT
    if boundary_modality == "speech":
        speech = speech | boundary
    elif boundary_modality == "text":
        text = text | boundary
    return text, speech


def chosen_tokens(
    choice: TokenChoice, text_RT: torch.Tensor, speech_RT: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What each token weighs under ``choice``, (R, T), before any mean: w_t or v_t of docs/method.md."""
    weight = torch.zeros_like(text_RT, dtype=dtype)
    if choice.tokens in ("all", "text"):
        weight = weight + choice.text_weight * text_RT.to(dtype)
    if choice.tokens in ("all", "speech"):
        weight = weight + choice.speech_weight * speech_RT.to(dtype)
    return weight


def token_weights(
    modality_RT: torch.Tensor,
    mask_RT: torch.Tensor,
    kind_R: torch.Tensor,
    scored_R: torch.Tensor,
    *,
    preference: PreferenceConfig,
    anchor: AnchorConfig,
    boundary_modality: str,
    aggregation: str,
    scale: float | None = None,
    pair_R: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> TokenWeights:
    """Weights of one mini-batch (docs/method.md: w_t, v_t and their denominators).

    Args:
        modality_RT: TEXT, SPEECH or BOUNDARY per response token.
        mask_RT: 1 on response tokens up to and including the first EOS.
        kind_R: ROLLOUT, ANCHOR or PADDING per row.
        scored_R: False for a rollout whose reward is missing: it leaves the loss.
        aggregation: ``seq-mean-token-mean`` (mean over a row's tokens, then over rows; the paper's), ``token-mean``, or
            ``seq-mean-token-sum-norm`` (sum over a row's tokens over ``scale``, then mean over rows; Dr. GRPO, arXiv
            2503.20783).
        pair_R: the pair of each row, −1 for none, under an objective over pairs; ``aggregation`` is then of the others.

    A row without a token of the wanted kind contributes nothing and is not counted in the mean over rows.
    """
    text, speech = modality_masks(modality_RT, mask_RT, boundary_modality)
    rollout = ((kind_R == ROLLOUT) & scored_R.bool())[:, None]
    target = (kind_R == ANCHOR)[:, None]

    def mean(weight_RT: torch.Tensor, rows_R1: torch.Tensor) -> torch.Tensor:
        return _normalise(weight_RT.to(dtype) * rows_R1, aggregation, scale)

    weight_RT = chosen_tokens(preference, text, speech, dtype)
    if pair_R is None:
        preferred = mean(weight_RT, rollout)
    else:
        preferred = pair_weights(weight_RT, pair_R, preference.pairs.length_normalized)
    return TokenWeights(
        preference=preferred,
        anchor=mean(chosen_tokens(anchor, text, speech, dtype), target),
        text=mean(text, rollout) + mean(text, target),
        speech=mean(speech, rollout) + mean(speech, target),
    )


def _normalise(weight_RT: torch.Tensor, aggregation: str, scale: float | None) -> torch.Tensor:
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation {aggregation!r} is not allowed: one of {', '.join(AGGREGATIONS)}")
    if aggregation == "token-mean":
        total = weight_RT.sum()
        return weight_RT / torch.where(total > 0, total, 1.0)
    per_row = weight_RT.sum(-1, keepdim=True)
    rows = (per_row > 0).sum().clamp(min=1)
    if aggregation == "seq-mean-token-mean":
        return weight_RT / torch.where(per_row > 0, per_row, 1.0) / rows
    if scale is None or not scale > 0:
        raise ValueError(f"aggregation {aggregation!r} needs a scale > 0, not {scale!r}: give one")
    return weight_RT / scale / rows
