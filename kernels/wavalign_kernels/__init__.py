"""Fused language-model head and reinforcement-learning loss: [T, V] is never stored, inactive positions cost nothing.

Importing this package imports neither triton nor any training framework.
"""

from .api import linear_logprob, logits_loss, wavalign_loss
from .records import ANCHOR, NONE, PREFERENCE, LossInputs, LossOutputs, LossParts

__all__ = [
    "ANCHOR",
    "NONE",
    "PREFERENCE",
    "LossInputs",
    "LossOutputs",
    "LossParts",
    "linear_logprob",
    "logits_loss",
    "wavalign_loss",
]
