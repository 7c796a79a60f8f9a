"""Objectives over pairs against an independent DPO: plain sums over lists, in float64, differentiated by autograd."""

import math
import random

import pytest
import torch

from wavalign_ext.config import AnchorConfig, PairsConfig, PreferenceConfig
from wavalign_ext.method.loss import LossCoefficients, LossInputs, combined_loss
from wavalign_ext.method.objectives import Pairs, best_and_worst, pair_terms
from wavalign_ext.method.token_weights import ANCHOR, ROLLOUT, chosen_tokens, modality_masks, token_weights

TEXT, SPEECH, BOUNDARY = 0, 1, 2
NAN = math.nan


def draw(seed: int) -> dict:
    """A mini-batch of pairs and anchors as lists, with a rarely empty text, equal answers, and settings."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows = []
    pairs = rng.randint(1, 4)
    for number in range(pairs * 2 + rng.randint(0, 2)):
        kinds = [rng.choice([TEXT, SPEECH, SPEECH, BOUNDARY]) for _ in range(rng.randint(1, 12))]
        if rng.random() < 0.1:
            kinds = [SPEECH] * len(kinds)  # no text at all
        logp = torch.randn(len(kinds), generator=generator, dtype=torch.float64) - 3
        ref = logp + torch.randn(len(kinds), generator=generator, dtype=torch.float64)
        rows.append({"kinds": kinds, "logp": logp, "ref": ref, "anchor": number >= 2 * pairs})
    if rng.random() < 0.2:
        rows[1] = dict(rows[0])  # chosen and rejected the same
    objective = rng.choice(["dpo", "dpo", "ipo"])
    plain = objective == "ipo"
    pair_keys = PairsConfig(
        beta=rng.choice([0.05, 0.1, 0.7]),
        label_smoothing=0.0 if plain else rng.choice([0.0, 0.1]),
        reference_free=rng.random() < 0.3,
        length_normalized=rng.random() < 0.4,
        target_margin=0.0 if plain else rng.choice([0.0, 0.5]),
    )
    preference = PreferenceConfig(
        tokens=rng.choice(["all", "text", "speech"]),
        text_weight=rng.choice([1.0, 2.0]),
        speech_weight=rng.choice([1.0, 0.3]),
        objective=objective,
        pairs=pair_keys,
    )
    return {"rows": rows, "pairs": pairs, "preference": preference, "lam": rng.choice([0.2, 0.5, 1.0])}


def oracle_weight(kind: int, p: PreferenceConfig) -> float:
    if kind == TEXT:
        return p.text_weight if p.tokens != "speech" else 0.0
    return p.speech_weight if p.tokens != "text" else 0.0  # boundaries count as speech


def oracle_preference(case: dict, logps: list[torch.Tensor]) -> torch.Tensor:
    p = case["preference"]
    c = p.pairs

    def score(row: int, values: torch.Tensor) -> torch.Tensor:
        weights = [oracle_weight(kind, p) for kind in case["rows"][row]["kinds"]]
        total = sum((w * v for w, v in zip(weights, values, strict=True)), torch.zeros((), dtype=torch.float64))
        return total / sum(weights) if c.length_normalized and sum(weights) else total

    losses = []
    for number in range(case["pairs"]):
        a, b = 2 * number, 2 * number + 1
        gap = score(a, logps[a]) - score(b, logps[b])
        if not c.reference_free:
            gap = gap - (score(a, case["rows"][a]["ref"]) - score(b, case["rows"][b]["ref"]))
        if p.objective == "ipo":
            losses.append((gap - 0.5 / c.beta) ** 2)
        else:
            right = 1 / (1 + torch.exp(-(c.beta * gap - c.target_margin)))
            wrong = 1 / (1 + torch.exp(c.beta * gap - c.target_margin))
            losses.append(-(1 - c.label_smoothing) * right.log() - c.label_smoothing * wrong.log())
    return sum(losses) / len(losses)


def oracle_anchor(case: dict, logps: list[torch.Tensor]) -> torch.Tensor:
    means = [-logps[n].mean() for n, row in enumerate(case["rows"]) if row["anchor"]]
    return sum(means) / len(means) if means else torch.zeros((), dtype=torch.float64)


def padded(case: dict, name: str) -> torch.Tensor:
    rows = [torch.as_tensor(row[name]) for row in case["rows"]]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def ours(case: dict, order: list[int] | None = None, cuts: int = 1) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(mean pair loss, gradient on log-probs in the rows' own order, slopes), by micro-batches of shuffled rows."""
    count = len(case["rows"])
    order = order or list(range(count))
    shuffled = case | {"rows": [case["rows"][row] for row in order]}
    kinds, logp, ref = (padded(shuffled, name) for name in ("kinds", "logp", "ref"))
    mask = padded({"rows": [{"m": [1] * len(row["kinds"])} for row in shuffled["rows"]]}, "m")
    place = {row: position for position, row in enumerate(order)}
    pairs = Pairs([place[2 * n] for n in range(case["pairs"])], [place[2 * n + 1] for n in range(case["pairs"])])
    p = case["preference"]
    text, speech = modality_masks(kinds, mask, "speech")
    weight = chosen_tokens(p, text, speech, torch.float64)
    terms = pair_terms(pairs, weight, logp, ref, p.objective, p.pairs)
    is_anchor = torch.tensor([row["anchor"] for row in shuffled["rows"]])
    weights = token_weights(
        kinds,
        mask,
        torch.where(is_anchor, ANCHOR, ROLLOUT),
        torch.ones(count),
        preference=p,
        anchor=AnchorConfig(),
        boundary_modality="speech",
        aggregation="seq-mean-token-mean",
        pair_R=pairs.numbers(count),
        dtype=torch.float64,
    )
    leaf = logp.clone().requires_grad_()
    streams = [
        terms.advantages(pairs, count)[:, None] * (weight > 0),
        weights.preference,
        weights.anchor,
        weights.text,
        weights.speech,
    ]
    for rows in torch.arange(count).chunk(cuts):
        advantage, preference, anchor, one, two = (stream[rows] for stream in streams)
        inputs = LossInputs(leaf[rows], None, advantage, preference, anchor, one, two, is_anchor[rows, None])
        combined_loss(inputs, case["lam"], LossCoefficients(kl_text=0, kl_speech=0)).loss.backward()
    assert leaf.grad is not None
    back = torch.zeros_like(leaf.grad)
    back[order] = leaf.grad
    return terms.loss.mean().item(), back, terms.slope


@pytest.mark.parametrize("seed", range(200))
def test_loss_and_gradients_are_those_of_dpo(seed: int) -> None:
    case = draw(seed)
    logps = [row["logp"].clone().requires_grad_() for row in case["rows"]]
    preference = oracle_preference(case, logps)
    total = case["lam"] * preference + (1 - case["lam"]) * oracle_anchor(case, logps)
    if total.requires_grad:
        total.backward()
    loss, gradient, _ = ours(case)
    assert loss == pytest.approx(preference.item(), rel=1e-9, abs=1e-9)
    for row, leaf in enumerate(logps):
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        assert (gradient[row, : len(expected)] - expected).abs().max() < 1e-9
        assert (gradient[row, len(expected) :] == 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_neither_row_order_nor_micro_batches_matter(seed: int) -> None:
    case = draw(seed)
    order = list(range(len(case["rows"])))
    random.Random(seed).shuffle(order)
    _, whole, _ = ours(case)
    for cuts in (1, 2, len(order)):
        _, cut, _ = ours(case, order, cuts)
        assert (whole - cut).abs().max() < 1e-12


def test_a_pair_that_is_right_already_pulls_less() -> None:
    rows = [[-1.0], [-9.0], [-9.0], [-1.0]]
    logp, pairs, weight = torch.tensor(rows), Pairs([0, 2], [1, 3]), torch.ones(4, 1)
    terms = pair_terms(pairs, weight, logp, torch.zeros(4, 1), "dpo", PairsConfig())
    assert terms.gap.tolist() == [8.0, -8.0]
    assert terms.slope.tolist() == pytest.approx([0.1 / (1 + math.exp(0.8)), 0.1 / (1 + math.exp(-0.8))])
    assert terms.advantages(pairs, 5).tolist() == pytest.approx(
        [*(s * x for s in terms.slope.tolist() for x in (1, -1)), 0.0]
    )


def test_ipo_pulls_back_beyond_its_gap() -> None:
    logp = torch.tensor([[0.0], [-6.0]])
    terms = pair_terms(Pairs([0], [1]), torch.ones(2, 1), logp, torch.zeros(2, 1), "ipo", PairsConfig())
    assert terms.loss.item() == pytest.approx(1.0) and terms.slope.item() == pytest.approx(-2.0)


def test_a_reference_is_asked_for_by_name() -> None:
    with pytest.raises(ValueError, match="objective 'dpo' compares with a reference policy"):
        pair_terms(Pairs([0], [1]), torch.ones(2, 1), torch.zeros(2, 1), None, "dpo", PairsConfig())
    free = pair_terms(
        Pairs([0], [1]), torch.ones(2, 1), torch.zeros(2, 1), None, "dpo", PairsConfig(reference_free=True)
    )
    assert free.loss.item() == pytest.approx(math.log(2))


def test_a_log_prob_without_weight_is_never_read() -> None:
    logp = torch.tensor([[-1.0, NAN], [-2.0, NAN]])
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert pair_terms(Pairs([0], [1]), weight, logp, logp, "dpo", PairsConfig()).gap.item() == 0.0


def test_best_and_worst_of_each_group_and_what_is_left_out() -> None:
    groups = list("aaabbbccddddee")
    scores = [3.0, 5.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.5, 4.0, 1.0, NAN, 4.0, 5.0, NAN]
    usable = [True] * 14
    usable[9] = False  # the worst of d, without a token
    found = best_and_worst(scores, groups, usable, min_gap=1.0)
    assert (found.chosen, found.rejected) == ([1], [2])
    assert found.left_out == {"unscored": 1, "tied": 2, "below_gap": 1}
    usable[9] = True
    found = best_and_worst(scores, groups, usable, min_gap=1.0)
    assert (found.chosen, found.rejected) == ([1, 8], [2, 9])  # of the two best of d the first
    assert found.numbers(14).tolist() == [-1, 0, 0, -1, -1, -1, -1, -1, 1, 1, -1, -1, -1, -1]


@pytest.mark.parametrize("gap,pairs", [(0.0, 1), (0.5, 1), (0.51, 0)])
def test_a_gap_of_nothing_is_a_tie_whatever_is_asked(gap: float, pairs: int) -> None:
    found = best_and_worst([1.0, 1.5, 2.0, 2.0], list("aabb"), [True] * 4, gap)
    assert len(found.chosen) == pairs and found.left_out["tied"] == 1


def test_with_two_mini_batches_only_the_sizes_of_the_advantages_are_of_the_start() -> None:
    """A table of logits as the policy: the second mini-batch's gradient, exact and with slopes of the batch's start."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(8, 20, generator=generator, dtype=torch.float64)
    answers = torch.randint(0, 20, (16, 8), generator=generator)  # rows of 8 tokens, one at each place
    pairs, weight, beta = Pairs(list(range(0, 16, 2)), list(range(1, 16, 2))), torch.ones(16, 8), 0.5
    config = PairsConfig(beta=beta)

    def logp(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1)[torch.arange(8), answers]

    def gradient(logits: torch.Tensor, slopes: torch.Tensor, half: slice) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        sums = logp(leaf).sum(-1)
        (-(slopes * (sums[::2] - sums[1::2]))[half].mean()).backward()
        assert leaf.grad is not None
        return leaf.grad

    start = pair_terms(pairs, weight, logp(table), logp(table), "dpo", config)
    moved = table - 0.5 * gradient(table, start.slope, slice(0, 4))
    now = pair_terms(pairs, weight, logp(moved), logp(table), "dpo", config)
    exact, stale = (gradient(moved, slopes, slice(4, 8)) for slopes in (now.slope, start.slope))
    shift = beta * (now.gap - start.gap)[4:]
    assert 0.01 < shift.abs().max() < 0.5
    ratio = (start.slope / now.slope)[4:].log()
    assert (ratio.abs() <= shift.abs()).all()  # σ(−m) changes by a factor within e^±|change of m|
    error = ((exact - stale).norm() / exact.norm()).item()
    assert 0 < error < shift.abs().max()
