"""λ of each prompt: the average of the step's with its own gate, and the row weights that carry it into the loss."""

import math

import numpy as np
import pytest
import torch

from wavalign_ext.config import AnchorConfig, MixingConfig, PreferenceConfig
from wavalign_ext.method.loss import LossCoefficients, LossInputs, combined_loss
from wavalign_ext.method.mixing import MixingController, row_shares
from wavalign_ext.method.token_weights import ANCHOR, ROLLOUT, token_weights

GROUPS = ["a", "a", "b", "b", "c", "c"]
STEPS = [
    [5.0, 1.0, 1.0, 1.0, 3.0, 2.0],
    [4.0, 1.0, math.nan, 1.0, 5.0, 5.0],
    [math.nan] * 6,
    [1.0, 5.0, 2.0, 4.0, 3.0, 1.0],
]


def raw(best: float, variance: float) -> float:
    return 0.8 / (1 + math.exp(-5 * (best - 3))) * min(variance / 4, 1)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_each_prompt_has_the_average_with_its_own_gate(decay: float) -> None:
    controller = MixingController(MixingConfig(scope="prompt", ema_decay=decay))
    whole = MixingController(MixingConfig(ema_decay=decay))
    before = None
    for rewards in STEPS:
        lam = controller.update(rewards, GROUPS)
        assert controller.last is not None and lam == whole.update(rewards, GROUPS)
        values = np.array(rewards).reshape(3, 2)
        scored = ~np.isnan(values)
        gates = [raw(v.max(), v.var()) if s.all() else 0.0 for v, s in zip(values, scored, strict=True)]
        kept = decay if before is not None else 0.0
        wanted = [(1 - kept) * gate + kept * (before or 0.0) if scored.any() else 0.0 for gate in gates]
        assert list(controller.last.by_prompt.values()) == pytest.approx(wanted, abs=1e-12)
        assert np.mean(wanted) == pytest.approx(lam, abs=1e-12)
        before = lam if scored.any() else before


def test_a_resumed_gate_goes_on_with_the_average() -> None:
    first = MixingController(MixingConfig(scope="prompt"))
    first.update(STEPS[0], GROUPS)
    second = MixingController(MixingConfig(scope="prompt"))
    second.load_state_dict(first.state_dict())
    first.update(STEPS[1], GROUPS)
    second.update(STEPS[1], GROUPS)
    assert first.last == second.last


def test_one_gate_for_the_step_says_nothing_of_prompts() -> None:
    controller = MixingController()
    controller.update(STEPS[0], GROUPS)
    assert controller.last is not None and controller.last.by_prompt == {}


@pytest.mark.parametrize("gates", [[0.7, 0.0, 0.2], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
def test_row_shares_give_each_prompt_its_own_mix(gates: list[float]) -> None:
    """By definition: the mean over prompts of λ_i · preference_i + (1 − λ_i) · anchor_i."""
    torch.manual_seed(1)
    prompts = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2])
    kind = torch.tensor([ROLLOUT] * 6 + [ANCHOR] * 3)
    modality, mask = torch.randint(0, 2, (9, 5)), torch.ones(9, 5)
    logp = -torch.rand(9, 5, dtype=torch.float64)
    advantage = torch.randn(9, 1, dtype=torch.float64).expand(9, 5)
    weights = token_weights(
        modality,
        mask,
        kind,
        torch.ones(9, dtype=torch.bool),
        preference=PreferenceConfig(tokens="all"),
        anchor=AnchorConfig(),
        boundary_modality="speech",
        aggregation="seq-mean-token-mean",
        dtype=torch.float64,
    )
    lam = sum(gates) / 3
    shares = row_shares([gates[p] for p in prompts], lam)
    pref, anchor = (torch.tensor(share, dtype=torch.float64)[:, None] for share in shares)
    inputs = LossInputs(
        logp,
        None,
        advantage,
        weights.preference * pref,
        weights.anchor * anchor,
        weights.text,
        weights.speech,
        (kind == ANCHOR)[:, None],
    )
    found = combined_loss(inputs, lam, LossCoefficients(kl_text=0, kl_speech=0)).loss
    wanted = 0.0
    for prompt, gate in enumerate(gates):
        rollouts = (prompts == prompt) & (kind == ROLLOUT)
        target = (prompts == prompt) & (kind == ANCHOR)
        wanted += gate * -advantage[rollouts].mean() / 3 + (1 - gate) * -logp[target].mean() / 3
    assert float(found) == pytest.approx(float(wanted), abs=1e-12)
