"""The kernel's loss is the trainer's: `wavalign_loss` beside `wavalign_ext.method.loss.combined_loss`."""

import pytest
import torch
from wavalign_kernels import ANCHOR, PREFERENCE, LossInputs, logits_loss
from wavalign_kernels.records import LOG_RATIO_LIMIT

from wavalign_ext.method import loss as trainer

ROWS, V = 40, 300


def columns() -> dict[str, torch.Tensor]:
    """Old and reference log-probs near and far, rows without weights, NaN where a weight is 0."""
    g = torch.Generator().manual_seed(0)
    far = torch.tensor([0.0, 0.3, -0.3, 19.0, -19.0, 50.0, -100.0, -200.0])
    weights = torch.rand(ROWS, generator=g) * (torch.arange(ROWS) % 5 > 0)
    kappa = torch.rand(ROWS, generator=g) * (torch.arange(ROWS) % 3 > 0)
    old, ref = (torch.randn(ROWS, generator=g) * 0.2 - 6 + far[torch.randint(8, (ROWS,), generator=g)] for _ in "ab")
    return {
        "kind": torch.where(torch.arange(ROWS) % 4 == 3, ANCHOR, PREFERENCE),
        "targets": torch.randint(V, (ROWS,), generator=g),
        "weights": weights,
        "advantages": torch.randn(ROWS, generator=g) * (torch.arange(ROWS) % 6 > 0),
        "old_logp": torch.where(weights > 0, old, torch.nan),
        "ref_logp": torch.where(kappa > 0, ref, torch.nan),
        "kl_weights": kappa,
    }


def defined(logits: torch.Tensor, c: dict[str, torch.Tensor]) -> torch.Tensor:
    """By the trainer's function in float64; the share of a KL term goes to text, whose coefficient is 1 here."""
    logq = torch.log_softmax(logits, -1)
    anchor = c["kind"] == ANCHOR
    rows = {name: c[name].double()[None] for name in ("old_logp", "advantages", "ref_logp", "weights", "kl_weights")}
    zero = torch.zeros_like(rows["weights"])
    inputs = trainer.LossInputs(
        logp=logq.gather(1, c["targets"][:, None]).T,
        old_logp=rows["old_logp"],
        advantage=rows["advantages"],
        preference_weight=torch.where(anchor, zero, rows["weights"]),
        anchor_weight=torch.where(anchor, rows["weights"], zero),
        text_weight=torch.where(anchor, zero, rows["kl_weights"]),
        speech_weight=zero,
        is_anchor=anchor[None],
        reference=rows["ref_logp"],
        entropy=-(logq.exp() * logq).sum(-1)[None],
    )
    coefficients = trainer.LossCoefficients(
        clip_low=0.2, clip_high=0.28, clip_c=1.5, kl_text=1.0, kl_speech=0.0, entropy=0.05
    )
    return trainer.combined_loss(inputs, 0.3, coefficients).loss


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_value_and_gradient_are_those_of_the_trainers_loss(impl):
    logits = torch.randn(ROWS, V, generator=torch.Generator().manual_seed(1)).double()
    c = columns()
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    x = LossInputs(**c, entropy_coef=0.05, clip_low=0.2, clip_high=0.28, clip_c=1.5, lam=0.3)
    value, wanted = logits_loss(ours, x, impl=impl).loss, defined(theirs, c)
    value.backward()
    wanted.backward()
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_both_know_one_limit():
    assert LOG_RATIO_LIMIT == trainer.LOG_RATIO_LIMIT
