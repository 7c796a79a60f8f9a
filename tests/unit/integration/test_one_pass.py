"""The loss that the head makes in one pass against the definition: loss, gradients and metrics of one micro-batch."""

# TensorDict annotates more narrowly than it behaves.
# pyright: reportArgumentType=false

import random

import pytest
import torch
from verl.utils import tensordict_utils as tu
from wavalign_kernels import LossInputs, linear_logprob, wavalign_loss

from wavalign_ext.config import AnchorConfig, PreferenceConfig
from wavalign_ext.integration.fused_head import response_positions
from wavalign_ext.integration.verl_loss import VerlLoss
from wavalign_ext.method.anchor import padding_row, rows_to_tensordict, supervised_row
from wavalign_ext.method.loss import LossCoefficients
from wavalign_ext.method.token_weights import ANCHOR, ROLLOUT, ROW_FIELDS, token_weights

HIDDEN, VOCABULARY = 12, 29


def micro_batch(
    seed: int, *, tokens: str = "text", anchors: bool = True, rollouts: bool = True, reference: bool = True
):
    """Ragged rollouts and anchors with ratios inside and outside of the clip, one of them without a score."""
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    kinds = [ROLLOUT] * (5 * rollouts) + [ANCHOR] * (3 * anchors)
    rng.shuffle(kinds)
    rows = []
    for kind in kinds:
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 6))]
        response = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 9))]
        row = supervised_row(prompt, response, kind, torch.tensor([rng.choice([0, 0, 1, 2]) for _ in response]))
        if kind == ROLLOUT:
            drawn = torch.randn(3, len(response), generator=noise, dtype=torch.float64)
            row |= {"old_log_probs": drawn[0] - 3.4, "ref_log_prob": drawn[1] - 3.4, "advantages": drawn[2]}
            row |= {"temperature": torch.tensor(0.7)}
        rows.append(row)
    rows.append(padding_row(0))
    pad = lambda name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True)  # noqa: E731
    scored = torch.tensor([number != 0 for number in range(len(rows))])
    weights = token_weights(
        pad("modality"),
        pad("response_mask"),
        torch.tensor([int(row["row_kind"]) for row in rows]),
        scored,
        preference=PreferenceConfig(tokens=tokens),
        anchor=AnchorConfig(),
        boundary_modality="speech",
        aggregation="seq-mean-token-mean",
        dtype=torch.float64,
    )
    streams = (weights.preference, weights.anchor, weights.text, weights.speech)
    for number, row in enumerate(rows):
        row.update({n: w[number, : len(row["responses"])] for n, w in zip(ROW_FIELDS, streams, strict=True)})
        if not reference:
            del row["ref_log_prob"]
        for name, value in row.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim():
                row[name] = value.double()
    data = rows_to_tensordict(rows)
    for name, value in {"wavalign_lambda": 0.37, "dp_size": 2}.items():
        tu.assign_non_tensor_data(data, name, value)
    return data


def both(data, coefficients: LossCoefficients, dtype=torch.float64):
    """(two-step, one-pass): each a loss, the gradients of hidden and weight, and the metrics."""
    made, noise = [], torch.Generator().manual_seed(9)
    count, positions = len(data["input_ids"].values()), response_positions(data)
    hidden = torch.randn(count, HIDDEN, generator=noise, dtype=torch.float64).to(dtype)
    weight = 0.2 * torch.randn(VOCABULARY, HIDDEN, generator=noise, dtype=torch.float64)
    weight = weight.to(dtype)
    targets = torch.roll(data["input_ids"].values(), -1)
    temperature = torch.repeat_interleave(data["temperature"], data["input_ids"].offsets().diff()).double()
    for one_pass in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = VerlLoss(coefficients, one_pass=one_pass)
        asked, output = loss.head_loss(data), {}
        assert (asked is not None) == one_pass
        if asked is None:
            active = torch.zeros(count, dtype=torch.bool)
            active[positions] = loss.needed_tokens(data)
            logp, entropy = linear_logprob(h, w, targets, active=active, temperature=temperature)
        else:
            place = lambda v: v.new_zeros(count).index_copy_(0, positions, v)  # noqa: E731
            columns = {n: place(v) if isinstance(v, torch.Tensor) and v.dim() else v for n, v in asked.items()}
            result = wavalign_loss(h, w, LossInputs(targets=targets, temperature=temperature, **columns))
            logp, entropy, output["loss"] = result.logp, result.entropy, result.loss
        assert entropy is not None
        offsets = data["input_ids"].offsets()
        output |= {
            n: torch.nested.nested_tensor_from_jagged(v, offsets)
            for n, v in (("log_probs", logp), ("entropy", entropy))
        }
        value, metrics = loss(output, data)
        value.backward()
        made.append((value.detach(), h.grad, w.grad, {name: m.aggregate() for name, m in metrics.items()}))
    return made


CASES = [
    {},
    {"tokens": "all"},
    {"tokens": "speech"},
    {"anchors": False},
    {"rollouts": False},
    {"reference": False},
    {"reference": False, "tokens": "all", "anchors": False},
]
COEFFICIENTS = [
    LossCoefficients(kl_text=0.05, kl_speech=0.3, clip_c=1.4),
    LossCoefficients(kl_text=0.0, kl_speech=0.0, clip_low=0.1, clip_high=0.3),
    LossCoefficients(kl_text=0.2, kl_speech=0.0, entropy=0.01),
]


@pytest.mark.parametrize("coefficients", COEFFICIENTS, ids=["both KL", "no KL", "entropy bonus"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: ", ".join(f"{k}={v}" for k, v in case.items()) or "paper")
def test_one_pass_gives_the_loss_and_gradients_of_two(case: dict, coefficients: LossCoefficients) -> None:
    for seed in range(5):
        two, one = both(micro_batch(seed, **case), coefficients)
        for a, b in zip(two[:3], one[:3], strict=True):
            torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-13)
        assert one[3] == pytest.approx(two[3], rel=1e-12, abs=1e-13)
        assert one[3]["actor/total_loss"] == pytest.approx(one[0].item(), rel=1e-12, abs=1e-13)


def test_the_cases_reach_the_clip_and_every_kind() -> None:
    clipped, dual, seen = 0.0, 0.0, set()
    for seed in range(5):
        data = micro_batch(seed)
        asked = VerlLoss(COEFFICIENTS[0]).head_loss(data)
        assert asked is not None
        seen |= set(asked["kind"].tolist())
        metrics = both(data, COEFFICIENTS[0])[1][3]
        clipped, dual = clipped + metrics["actor/pg_clipfrac"], dual + metrics["actor/pg_clipfrac_lower"]
        idle = (asked["weights"] == 0) & (asked["kl_weights"] > 0)
        assert idle.any(), "no token has a KL term alone"
    assert seen == {0, 1, 2} and clipped > 0 and dual > 0


def test_in_fp32_one_pass_is_as_close_to_fp64_as_two() -> None:
    exact = both(micro_batch(1), COEFFICIENTS[0])[0]
    two, one = both(micro_batch(1), COEFFICIENTS[0], dtype=torch.float32)
    for number in (1, 2):
        scale = exact[number].norm()
        errors = [(side[number].double() - exact[number]).norm() / scale for side in (one, two)]
        assert errors[0] < max(1e-6, 1.5 * errors[1])
