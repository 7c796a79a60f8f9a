"""The method against a second implementation of docs/method.md: loops and floats, no code shared with ours.

Random batches with ragged lengths, rows without text or without speech, equal rewards, a single rollout and missing
scores; losses and gradients must agree to 1e-9 in float64, λ exactly.
"""

import math
import random

import pytest
import torch

from wavalign_ext.config import AnchorConfig, MixingConfig, PreferenceConfig
from wavalign_ext.method.advantage import group_advantages
from wavalign_ext.method.loss import LossCoefficients, LossInputs, combined_loss
from wavalign_ext.method.mixing import MixingController
from wavalign_ext.method.token_weights import ANCHOR, PADDING, ROLLOUT, token_weights

TEXT, SPEECH, BOUNDARY = "text", "speech", "boundary"
CODE = {TEXT: 0, SPEECH: 1, BOUNDARY: 2}
TOLERANCE = 1e-9


# --- the second implementation ------------------------------------------------------------------------------------


def kind_of(modality: str, boundaries: str) -> str:
    if modality == BOUNDARY:
        return {"speech": SPEECH, "text": TEXT, "ignore": "neither"}[boundaries]
    return modality


def in_tokens(kind: str, tokens: str) -> bool:
    return kind in (TEXT, SPEECH) and (tokens == "all" or tokens == kind)


def oracle_advantages(groups: list[dict], p: dict) -> list[list[float]]:
    result = []
    for group in groups:
        known = [g for g, r in enumerate(group["rewards"]) if not math.isnan(r)]
        row = []
        for g, r in enumerate(group["rewards"]):
            if math.isnan(r) or len(known) < 2:
                row.append(0.0)
                continue
            scores = [group["rewards"][k] for k in known]
            if p["advantage"] == "rloo":
                others = [group["rewards"][k] for k in known if k != g]
                row.append(r - sum(others) / len(others))
                continue
            mean = sum(scores) / len(scores)
            std = math.sqrt(sum((x - mean) ** 2 for x in scores) / len(scores))
            row.append((r - mean) / (std + 1e-4) if p["by_std"] else r - mean)
        result.append(row)
    return result


def oracle_surrogate(row: dict, w: list[float], advantage: float, p: dict) -> list:
    """The loss of each token of a row. Row-wise objectives are written as the papers have them, for the whole row."""
    new_old = list(zip(row["logp"], row["old"], strict=True))
    low, high = p["clip_low"], p["clip_high"]
    if p["mode"] == "vanilla":
        losses = []
        for new, old in new_old:
            ratio = torch.exp(new - old)
            loss = -torch.minimum(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)
            if advantage < 0:
                loss = torch.minimum(loss, torch.tensor(-p["clip_c"] * advantage, dtype=torch.float64))
            losses.append(loss)
        return losses
    total = sum(w) or 1.0
    if p["mode"] == "gspo":
        ratio = torch.exp(sum(a * (new - old) for a, (new, old) in zip(w, new_old, strict=True)) / total)
        loss = -torch.minimum(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)
        return [loss] * len(w)
    product = torch.tensor(1.0, dtype=torch.float64)
    for a, (new, old) in zip(w, new_old, strict=True):
        ratio = torch.exp(new - old)
        if advantage > 0:
            ratio = torch.minimum(ratio, torch.tensor(math.exp(high), dtype=torch.float64))
        elif advantage < 0:
            ratio = torch.maximum(ratio, torch.tensor(math.exp(-low), dtype=torch.float64))
        product = product * ratio ** (a / total)
    return [-product * advantage] * len(w)


def mean_over_rows(rows: list[tuple[list, list]], aggregation: str, scale: float):
    """rows: per row (weights, values); the weighted mean of a row, then the mean over the rows that have weight."""
    rows = [(w, v) for w, v in rows if sum(w) > 0]
    if not rows:
        return 0.0
    if aggregation == "seq-mean-token-sum-norm":
        return sum(sum(a * b for a, b in zip(w, v, strict=True)) / scale for w, v in rows) / len(rows)
    if aggregation == "token-mean":
        return sum(a * b for w, v in rows for a, b in zip(w, v, strict=True)) / sum(sum(w) for w, _ in rows)
    return sum(sum(a * b for a, b in zip(w, v, strict=True)) / sum(w) for w, v in rows) / len(rows)


def oracle_loss(groups: list[dict], anchors: list[dict], lam: float, p: dict):
    preference_rows, kl_text, kl_speech, entropy_rows, anchor_rows = [], [], [], [], []
    for group, advantages in zip(groups, oracle_advantages(groups, p), strict=True):
        for row, reward, advantage in zip(group["rows"], group["rewards"], advantages, strict=True):
            if math.isnan(reward):
                continue
            kinds = [kind_of(m, p["boundaries"]) for m in row["modality"]]
            weight_of = {TEXT: p["pref_text"], SPEECH: p["pref_speech"]}
            w = [weight_of[k] if in_tokens(k, p["pref_tokens"]) else 0.0 for k in kinds]
            k3 = [torch.exp(ref - new) - (ref - new) - 1 for new, ref in zip(row["logp"], row["ref"], strict=True)]
            preference_rows.append((w, oracle_surrogate(row, w, advantage, p)))
            entropy_rows.append((w, row["entropy"]))
            kl_text.append(([float(k == TEXT) for k in kinds], k3))
            kl_speech.append(([float(k == SPEECH) for k in kinds], k3))
    for row in anchors:
        kinds = [kind_of(m, p["boundaries"]) for m in row["modality"]]
        weight_of = {TEXT: p["anchor_text"], SPEECH: p["anchor_speech"]}
        v = [weight_of[k] if in_tokens(k, p["anchor_tokens"]) else 0.0 for k in kinds]
        anchor_rows.append((v, [-x for x in row["logp"]]))
    how = p["aggregation"], p["scale"]
    preference = mean_over_rows(preference_rows, *how)
    preference = preference + p["kl_text"] * mean_over_rows(kl_text, *how)
    preference = preference + p["kl_speech"] * mean_over_rows(kl_speech, *how)
    preference = preference - p["entropy"] * mean_over_rows(entropy_rows, *how)
    return lam * preference + (1 - lam) * mean_over_rows(anchor_rows, *how)


def oracle_lambda(step: list[list[float]], previous: float | None, lam_max, k, tau, v0, alpha):
    """One step; returns (λ, the new average). λ = 0 with nothing scored."""
    raws, scored = [], 0
    for rewards in step:
        known = [r for r in rewards if not math.isnan(r)]
        scored += len(known)
        if len(known) < 2:
            raws.append(0.0)
            continue
        mean = sum(known) / len(known)
        variance = sum((r - mean) ** 2 for r in known) / len(known)
        gate = 1 / (1 + math.exp(-k * (max(known) - tau)))
        raws.append(lam_max * gate * min(max(variance / v0, 0.0), 1.0))
    if scored == 0:
        return 0.0, previous
    raw = sum(raws) / len(raws)
    average = raw if previous is None else (1 - alpha) * raw + alpha * previous
    return average, average


# --- random batches -----------------------------------------------------------------------------------------------


def random_row(rng: random.Random, generator: torch.Generator) -> dict:
    length = rng.randint(1, 9)
    palette = rng.choice([[TEXT, SPEECH, BOUNDARY], [TEXT], [SPEECH, BOUNDARY], [SPEECH], [TEXT, SPEECH]])
    draw = lambda scale: torch.randn(length, dtype=torch.float64, generator=generator) * scale  # noqa: E731
    logp = -draw(1.0).abs()
    return {
        "modality": [rng.choice(palette) for _ in range(length)],
        "logp": logp.requires_grad_(),
        "old": logp.detach() + draw(rng.choice([0.3, 1.0])),
        "ref": logp.detach() + draw(0.5),
        "entropy": draw(1.0).abs(),
    }


def random_batch(seed: int) -> tuple[list[dict], list[dict], float, dict]:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    groups = []
    for _ in range(rng.randint(1, 4)):
        size = rng.choice([1, 2, 4])
        rewards = [float(rng.randint(1, 5)) for _ in range(size)]
        if rng.random() < 0.3:
            rewards = [rewards[0]] * size
        rewards = [math.nan if rng.random() < 0.2 else r for r in rewards]
        groups.append({"rewards": rewards, "rows": [random_row(rng, generator) for _ in range(size)]})
    anchors = [random_row(rng, generator) for _ in range(rng.randint(0, 3))]
    parameters = {
        "boundaries": rng.choice(["speech", "text", "ignore"]),
        "pref_tokens": rng.choice(["text", "speech", "all"]),
        "anchor_tokens": rng.choice(["text", "speech", "all"]),
        "pref_text": rng.choice([1.0, 0.5]),
        "pref_speech": rng.choice([1.0, 0.25]),
        "anchor_text": rng.choice([1.0, 4.0]),
        "anchor_speech": rng.choice([1.0, 0.5]),
        "kl_text": rng.choice([0.0, 1e-3, 0.1]),
        "kl_speech": rng.choice([0.0, 1e-3, 0.1]),
        "entropy": rng.choice([0.0, 0.01]),
        "clip_low": 0.2,
        "clip_high": rng.choice([0.2, 0.28]),
        "aggregation": rng.choice(["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]),
        "scale": rng.choice([7.0, 96.0]),
        "mode": rng.choice(["vanilla", "gspo", "geo_mean"]),
        "clip_c": rng.choice([3.0, 1.5]),
        "advantage": rng.choice(["grpo", "rloo"]),
        "by_std": rng.random() < 0.7,
    }
    return groups, anchors, rng.random(), parameters


def our_loss(groups: list[dict], anchors: list[dict], lam: float, p: dict, pieces: int = 1) -> torch.Tensor:
    """Our path: pad, weigh the whole mini-batch, then sum the loss over ``pieces`` micro-batches."""
    rows = [row for group in groups for row in group["rows"]] + anchors
    rewards = torch.tensor([r for g in groups for r in g["rewards"]], dtype=torch.float64)
    ids = [number for number, g in enumerate(groups) for _ in g["rewards"]]
    pad = lambda column: torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True)  # noqa: E731
    modality = pad(torch.tensor([CODE[m] for m in row["modality"]]) for row in rows)
    mask = pad(torch.ones(len(row["modality"]), dtype=torch.long) for row in rows)
    kind = torch.tensor([ROLLOUT] * len(rewards) + [ANCHOR] * len(anchors))
    weights = token_weights(
        modality,
        mask,
        kind,
        torch.cat([~torch.isnan(rewards), torch.ones(len(anchors), dtype=torch.bool)]),
        preference=PreferenceConfig(
            tokens=p["pref_tokens"], text_weight=p["pref_text"], speech_weight=p["pref_speech"]
        ),
        anchor=AnchorConfig(tokens=p["anchor_tokens"], text_weight=p["anchor_text"], speech_weight=p["anchor_speech"]),
        boundary_modality=p["boundaries"],
        aggregation=p["aggregation"],
        scale=p["scale"],
        dtype=torch.float64,
    )
    zeros = torch.zeros(len(anchors), dtype=torch.float64)
    advantages = group_advantages(rewards, ids, p["advantage"], p["by_std"])
    advantage = torch.cat([advantages, zeros])[:, None].expand(mask.shape)
    inputs = dict(
        logp=pad(row["logp"] for row in rows),
        old_logp=pad(row["old"] for row in rows),
        reference=pad(row["ref"] for row in rows),
        entropy=pad(row["entropy"] for row in rows),
        advantage=advantage,
        preference_weight=weights.preference,
        anchor_weight=weights.anchor,
        text_weight=weights.text,
        speech_weight=weights.speech,
        is_anchor=(kind == ANCHOR)[:, None],
    )
    names = ("clip_low", "clip_high", "clip_c", "kl_text", "kl_speech", "entropy", "mode")
    coefficients = LossCoefficients(**{name: p[name] for name in names})
    parts = [rows for rows in torch.arange(len(kind)).chunk(pieces)]
    return sum(combined_loss(LossInputs(**{k: v[r] for k, v in inputs.items()}), lam, coefficients).loss for r in parts)


def gradients(loss: torch.Tensor, rows: list[dict]) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, [row["logp"] for row in rows], allow_unused=True, retain_graph=True)
    return [torch.zeros_like(row["logp"]) if g is None else g for g, row in zip(found, rows, strict=True)]


@pytest.mark.parametrize("first_seed", range(0, 400, 100))
def test_loss_and_gradients_match_the_formulas(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 100):
        groups, anchors, lam, p = random_batch(seed)
        rows = [row for group in groups for row in group["rows"]] + anchors
        expected = torch.as_tensor(oracle_loss(groups, anchors, lam, p), dtype=torch.float64)
        actual = our_loss(groups, anchors, lam, p)
        assert abs(actual.item() - expected.item()) < TOLERANCE, f"seed {seed}: {actual} != {expected}"
        if not expected.requires_grad:
            expected = expected + 0 * sum(row["logp"].sum() for row in rows)
        for ours, theirs in zip(gradients(actual, rows), gradients(expected, rows), strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE), f"seed {seed}"


@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_micro_batches_do_not_change_the_loss(pieces: int) -> None:
    for seed in range(50):
        groups, anchors, lam, p = random_batch(seed)
        rows = [row for group in groups for row in group["rows"]] + anchors
        whole, cut = our_loss(groups, anchors, lam, p), our_loss(groups, anchors, lam, p, pieces)
        assert whole.item() == pytest.approx(cut.item(), abs=1e-12)
        for a, b in zip(gradients(whole, rows), gradients(cut, rows), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_text_preference_leaves_rollout_speech_alone() -> None:
    """Gradient isolation: no anchor weight, no speech KL, and not one bit of gradient at speech or boundary tokens."""
    touched = 0
    for seed in range(100):
        groups, _, _, p = random_batch(seed)
        p |= {"pref_tokens": "text", "boundaries": "speech", "kl_speech": 0.0}
        rows = [row for group in groups for row in group["rows"]]
        for row, gradient in zip(rows, gradients(our_loss(groups, [], 1.0, p), rows), strict=True):
            text = torch.tensor([m == TEXT for m in row["modality"]])
            assert (gradient[~text] == 0).all()
            touched += int((gradient[text] != 0).sum())
    assert touched > 100


def test_text_preference_leaves_the_logits_of_rollout_speech_alone() -> None:
    """The same at the logits, through the log-softmax: exactly zero at speech positions, and at no text position."""
    generator = torch.Generator().manual_seed(0)
    modality = [TEXT, SPEECH, BOUNDARY, TEXT, SPEECH, SPEECH]
    logits, rows = [], []
    for _ in range(4):
        z = torch.randn(len(modality), 11, dtype=torch.float64, generator=generator).requires_grad_()
        chosen = torch.randint(11, (len(modality), 1), generator=generator)
        logp = torch.log_softmax(z, -1).gather(1, chosen)[:, 0]
        kept = {name: logp.detach() for name in ("old", "ref", "entropy")}
        logits.append(z)
        rows.append({"modality": modality, "logp": logp, **kept})
    _, _, _, p = random_batch(0)
    p |= {"pref_tokens": "text", "pref_text": 1.0, "boundaries": "speech", "kl_text": 0.0, "kl_speech": 0.0}
    loss = our_loss([{"rewards": [1.0, 2.0, 4.0, 5.0], "rows": rows}], [], 1.0, p)
    for gradient in torch.autograd.grad(loss, logits):
        touched = (gradient != 0).any(-1).tolist()
        assert touched == [m == TEXT for m in modality]


def test_speech_kl_acts_under_text_preference() -> None:
    groups, _, _, p = random_batch(3)
    p |= {"pref_tokens": "text", "boundaries": "speech", "kl_text": 0.0, "kl_speech": 0.1, "entropy": 0.0}
    rows = [row for group in groups for row in group["rows"]]
    found = gradients(our_loss(groups, [], 1.0, p), rows)
    assert any((g[[m != TEXT for m in row["modality"]]] != 0).any() for g, row in zip(found, rows, strict=True))


def test_padding_rows_take_no_part() -> None:
    modality, mask = torch.zeros(3, 4, dtype=torch.long), torch.ones(3, 4)
    common = dict(
        preference=PreferenceConfig(tokens="all"),
        anchor=AnchorConfig(),
        boundary_modality="speech",
        aggregation="token-mean",
    )
    kinds = torch.tensor([ROLLOUT, ANCHOR, PADDING])
    weights = token_weights(modality, mask, kinds, torch.ones(3), **common)
    for stream in (weights.preference, weights.anchor, weights.text, weights.speech):
        assert (stream[2] == 0).all()
    assert weights.preference[0].sum() == pytest.approx(1)


def random_step(rng: random.Random, low: float, high: float) -> list[list[float]]:
    step = []
    for _ in range(rng.randint(1, 5)):
        rewards = [rng.uniform(low, high) for _ in range(rng.choice([1, 2, 4, 8]))]
        step.append([math.nan if rng.random() < 0.25 else r for r in rewards])
    return step


@pytest.mark.parametrize("scale", [(1.0, 5.0), (0.0, 1.0), (-2.0, 2.0)])
def test_lambda_traces_match_the_formulas(scale: tuple[float, float]) -> None:
    low, high = scale
    constants = dict(lam_max=0.8, k=20 / (high - low), tau=(low + high) / 2, v0=((high - low) / 2) ** 2, alpha=0.9)
    for seed in range(100):
        rng, controller, average = random.Random(seed), MixingController(scale=scale), None
        for _ in range(8):
            step = random_step(rng, low, high)
            if rng.random() < 0.1:
                step = [[math.nan] * len(rewards) for rewards in step]
            expected, average = oracle_lambda(step, average, **constants)
            flat = [r for rewards in step for r in rewards]
            ids = [number for number, rewards in enumerate(step) for _ in rewards]
            assert controller.update(flat, ids) == pytest.approx(expected, abs=1e-15)


def test_lambda_has_the_public_release_formula_by_default() -> None:
    """Spelt out with the release's own constants on 1-5: two steps by hand."""
    controller = MixingController()
    first = 0.8 * (1 / (1 + math.exp(-5 * (5 - 3)))) * min(4.0 / 4, 1)  # rewards 1, 5: max 5, variance 4
    assert controller.update([1, 5], ["a", "a"]) == pytest.approx(first, abs=1e-15)
    second = 0.8 * (1 / (1 + math.exp(-5 * (2 - 3)))) * min(0.25 / 4, 1)  # rewards 1, 2: max 2, variance 1/4
    assert controller.update([1, 2], ["b", "b"]) == pytest.approx(0.1 * second + 0.9 * first, abs=1e-15)


def test_lambda_state_continues_after_a_resume() -> None:
    one, two = MixingController(), MixingController()
    one.update([1, 4, 5], [0, 0, 0])
    two.load_state_dict(one.state_dict())
    assert one.update([2, 5], [1, 1]) == two.update([2, 5], [1, 1])


def test_fixed_mixing_ignores_rewards() -> None:
    controller = MixingController(MixingConfig(type="fixed", value=0.3))
    assert controller.update([1, 5], [0, 0]) == 0.3
    assert controller.update([math.nan, math.nan], [0, 0]) == 0.3


def test_a_scale_that_is_not_one_is_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        MixingController(scale=(5, 1))
