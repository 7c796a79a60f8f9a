"""Sums over micro-batches become verl's own comparison of rollout engine and policy, and the means by modality."""

import math

import pytest
import torch

from wavalign_ext.method.policy_sums import PREFIX, policy_metrics, policy_sums

R, T = 6, 9


def streams(seed: int = 0) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    drawn = torch.randn(4, R, T, generator=noise)
    logp = -drawn[0].abs()
    text = torch.rand(R, T, generator=noise) < 0.3
    speech = ~text & (torch.rand(R, T, generator=noise) < 0.7)
    return {
        "logp": logp,
        "sampled": logp + 1e-2 * drawn[1],
        "entropy": drawn[2].abs(),
        "reference": logp + 0.3 * drawn[3],
        "text": text,
        "speech": speech,
    }


def summed(s: dict[str, torch.Tensor], cuts: list[slice]) -> dict[str, float]:
    """What verl hands back: sums added up over micro-batches, the largest of the largest."""
    total: dict[str, float] = {}
    for at in cuts:
        part = policy_sums(
            s["logp"][at],
            {"text": s["text"][at], "speech": s["speech"][at]},
            rollout_logp_RT=s["sampled"][at],
            entropy_RT=s["entropy"][at],
            reference_RT=s["reference"][at],
        )
        for name, value in part.items():
            joined = max if name.endswith("max") else lambda a, b: a + b
            total[name] = joined(total.get(name, 0.0), float(value))
    return total


@pytest.mark.parametrize("cuts", [[slice(0, R)], [slice(0, 1), slice(1, 4), slice(4, R)]], ids=["whole", "cut"])
def test_they_are_verls_numbers_however_the_batch_is_cut(cuts: list[slice]) -> None:
    from tensordict import TensorDict
    from verl import DataProto
    from verl.utils.debug.metrics import calculate_debug_metrics

    s = streams()
    found = policy_metrics(summed(s, cuts) | {"actor/other": 1.0})
    batch = {"rollout_log_probs": s["sampled"], "old_log_probs": s["logp"], "response_mask": s["text"] | s["speech"]}
    wanted = calculate_debug_metrics(DataProto(batch=TensorDict(batch | {"responses": s["logp"]}, batch_size=R)))
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), rel=1e-4), name
    for modality in ("text", "speech"):
        mask, gap = s[modality], s["reference"] - s["logp"]
        for kind, stream in (("logp", s["logp"]), ("entropy", s["entropy"]), ("kl", gap.exp() - gap - 1)):
            assert found[f"wavalign/{kind}_{modality}"] == pytest.approx(stream[mask].mean().item(), rel=1e-5)


@pytest.mark.parametrize("far", [25.0, 800.0, float("inf")])
def test_a_reference_far_away_leaves_the_kl_finite(far: float) -> None:
    s = streams()
    s["reference"] = s["logp"] + far
    found = policy_metrics(summed(s, [slice(0, R)]))
    for modality in ("text", "speech"):
        assert found[f"wavalign/kl_{modality}"] == pytest.approx(math.exp(20) - 21, rel=1e-6)  # the loss's own limit


def test_the_sums_leave_the_updates_metrics_and_nothing_else_does() -> None:
    update = summed(streams(), [slice(0, R)]) | {"actor/other": 1.0}
    policy_metrics(update)
    assert update == {"actor/other": 1.0}


def test_a_modality_without_tokens_has_no_mean() -> None:
    s = streams() | {"speech": torch.zeros(R, T, dtype=torch.bool)}
    found = policy_metrics(summed(s, [slice(0, R)]))
    assert "wavalign/logp_text" in found and not any("speech" in name for name in found)


def test_nothing_computed_says_nothing() -> None:
    nothing = torch.zeros(R, T, dtype=torch.bool)
    assert policy_metrics(summed(streams() | {"text": nothing, "speech": nothing}, [slice(0, R)])) == {}
    assert all(name.startswith(PREFIX) for name in summed(streams(), [slice(0, R)]))


def test_what_the_reference_has_not_scored_has_no_kl() -> None:
    s = streams()
    masks = {name: s[name] for name in ("text", "speech")}
    sums = policy_sums(s["logp"], masks, reference_RT=torch.zeros(R, T), referenced=["text"])
    found = policy_metrics({name: float(value) for name, value in sums.items()})
    assert "wavalign/kl_text" in found and "wavalign/kl_speech" not in found and "wavalign/logp_speech" in found
