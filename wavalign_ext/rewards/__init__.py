"""Rewards: named, weighted terms on one declared scale, scored asynchronously.

A recipe lists terms under ``wavalign.reward.terms``; a package of yours adds one with :func:`register_term`.
"""

from wavalign_ext.rewards import terms as _terms  # noqa: F401  (registers the terms)
from wavalign_ext.rewards.answer import SpokenAnswer
from wavalign_ext.rewards.mix import RewardMix, RewardResult, build_terms
from wavalign_ext.rewards.registry import RewardTerm, TermFailed, register_term

__all__ = [
    "RewardMix",
    "RewardResult",
    "RewardTerm",
    "SpokenAnswer",
    "TermFailed",
    "build_terms",
    "register_term",
]
