"""What the study compares: recipes, and the conditions that they are put under.

A recipe is a ``wavalign`` node as in a recipe's YAML, so that what is compared here is what runs under verl.
"""

from dataclasses import dataclass, field
from typing import Any

from wavalign_ext.config import WavAlignConfig

PROMPTS, ROLLOUTS, STEPS, MOST_TOKENS = 16, 4, 30, 84
SEEDS, TUNING_SEED, LEARNING_RATES = (1, 2, 3, 4, 5), 100, (2.5e-4, 5.0e-4, 1.0e-3)
JUDGE_NOISE = 0.5
"""Standard deviation of what is added to every reward: a judge is not a ruler."""


@dataclass(frozen=True)
class Condition:
    """``random_rewards``: the share of rewards replaced by a number drawn from the scale. ``out_of_reach``: the share
    of prompts about facts that the model was never taught. ``aggregation``: verl's ``loss_agg_mode``."""

    random_rewards: float = 0.0
    out_of_reach: float = 0.0
    aggregation: str = "token-mean"


CONDITIONS = {
    "clean": Condition(),
    "random": Condition(random_rewards=0.4),
    "out_of_reach": Condition(out_of_reach=0.5),
    "row_mean": Condition(aggregation="seq-mean-token-mean"),
}


def _fixed(value: float) -> dict[str, Any]:
    return {"type": "fixed", "value": value}


@dataclass(frozen=True)
class Recipe:
    """``node``: keys under ``wavalign``; ``mean_of``: a fixed λ that is the mean of another recipe's run.

    ``hears_manner``: the share of lively codes, not the content, drives the speech tokens. ``rates`` are tried.
    """

    node: dict[str, Any] = field(default_factory=dict)
    mean_of: str | None = None
    hears_manner: bool = False
    rates: tuple[float, ...] = LEARNING_RATES

    def config(self, lam: float | None = None) -> WavAlignConfig:
        """The checked node; ``lam`` where λ is another run's mean. No KL: the start itself is what is compared with."""
        mixing = {"mixing": _fixed(lam)} if lam is not None else {}
        given = {"layout": "pocket", "codec": {}, "kl": {"text": 0.0, "speech": 0.0}}
        return WavAlignConfig.from_mapping(given | self.node | mixing)


JOINT, TEXT = {"preference": {"tokens": "all"}}, {"preference": {"tokens": "text"}}
DPO, DPO_RATES = {"objective": "dpo"}, (1.25e-4, 2.5e-4, 5.0e-4)
RECIPES = {
    "sft_anchor": Recipe({"mixing": _fixed(0.0)}),
    "grpo_joint": Recipe(JOINT | {"mixing": _fixed(1.0)}),
    "grpo_text": Recipe(TEXT | {"mixing": _fixed(1.0)}),
    "dpo_all": Recipe({"preference": DPO | {"tokens": "all"}, "mixing": _fixed(1.0)}, rates=DPO_RATES),
    "dpo_text": Recipe({"preference": DPO, "mixing": _fixed(1.0)}, rates=DPO_RATES),
    "dpo_text_anchor": Recipe({"preference": DPO, "mixing": _fixed(0.5)}),
    "joint_anchor": Recipe(JOINT),
    "fixed_50": Recipe({"mixing": _fixed(0.5)}),
    "fixed_mean": Recipe(mean_of="adaptive"),
    "adaptive": Recipe(),
    "adaptive_no_ema": Recipe({"mixing": {"ema_decay": 0.0}}),
    "prompt_gate": Recipe({"mixing": {"scope": "prompt", "ema_decay": 0.0}}),
    "routed": Recipe({"preference": {"tokens": "all", "speech_weight": 0.125}}, hears_manner=True),
}
