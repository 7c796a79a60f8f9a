"""Rewards: named, weighted terms on one declared scale, scored asynchronously.

A recipe lists terms under ``wavalign.reward.terms``; a package of yours adds one with :func:`register_term`.
"""

from wavalign_ext.rewards import judge as _judge  # noqa: F401  (importing a module registers its terms)
from wavalign_ext.rewards import speech_terms as _speech_terms  # noqa: F401
from wavalign_ext.rewards import terms as _terms  # noqa: F401
from wavalign_ext.rewards.answer import SpokenAnswer
from wavalign_ext.rewards.mix import RewardMix, RewardResult, build_terms
from wavalign_ext.rewards.registry import RewardTerm, TermFailed, on_scale, register_term

__all__ = [
    "RewardMix",
    "RewardResult",
    "RewardTerm",
    "SpokenAnswer",
    "TermFailed",
    "build_terms",
    "on_scale",
    "register_term",
]
