"""Bad input is refused with the value, what is allowed, and the remedy."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from wavalign_kernels import LossInputs, checks, linear_logprob, logits_loss, wavalign_loss

T, H, V = 6, 4, 9


def head(**changes: Any) -> dict[str, Any]:
    return {"hidden": torch.randn(T, H), "weight": torch.randn(V, H)} | changes


def inputs(**changes: Any) -> LossInputs:
    base = LossInputs(torch.tensor([0, 1, 2, 1, 2, 0]), torch.tensor([-100, 1, 2, 3, 4, -100]), torch.ones(T))
    return replace(base, **{"advantages": torch.ones(T)} | changes)


BAD_HEADS = {
    "width": (head(weight=torch.randn(V, H + 1)), ["(6, 4)", "(9, 5)", "allowed: (T, H) and (V, H)", "untransposed"]),
    "rank": (head(hidden=torch.randn(1, T, H)), ["(1, 6, 4)", "allowed: (T, H) and (V, H)", "untransposed"]),
    "dtype": (head(weight=torch.randn(V, H).bfloat16()), ["weight is torch.bfloat16", "torch.float32", "cast"]),
    "integers": (
        head(hidden=torch.ones(T, H).int(), weight=torch.ones(V, H).int()),
        ["hidden is torch.int32", "allowed: float16, bfloat16, float32, float64", "cast it"],
    ),
    "transposed": (head(weight=torch.randn(H, V).T), ["strides (1, 9)", "not contiguous", "weight.contiguous()"]),
    "two devices": (head(weight=torch.empty(V, H, device="meta")), ["weight is on meta", "hidden on cpu", "move one"]),
    "bias shape": (head(bias=torch.randn(V + 1)), ["bias has shape (10,)", "allowed: (9,)"]),
    "bias dtype": (head(bias=torch.randn(V).half()), ["bias is torch.float16", "torch.float32", "cast"]),
    "chunk 0": (head(chunk_rows=0), ["chunk_rows=0", "allowed: None, or a whole number of at least 1"]),
    "chunk share": (head(chunk_rows=0.5), ["chunk_rows=0.5", "allowed: None, or a whole number"]),
    "impl": (head(impl="cuda"), ["impl='cuda'", "allowed: auto, triton, torch, reference"]),
}

NAN, INF = float("nan"), float("inf")


def number(value: Any) -> torch.Tensor:
    return torch.tensor(value)


def but_one(value: float) -> torch.Tensor:
    """A column of ones with this at position 3, a preference."""
    return torch.ones(T).index_fill(0, torch.tensor([3]), value)


BAD_INPUTS = {
    "length": (dict(weights=torch.ones(T + 1)), ["weights has shape (7,)", "allowed: (6,)", "one per position"]),
    "target": (dict(targets=torch.tensor([0, 9, 0, 0, 0, 0])), ["target 9 at active position 1", "0 to 8", "inactive"]),
    "negative": (dict(targets=torch.tensor([0, 0, 0, 0, -1, 0])), ["target -1 at active position 4", "0 to 8"]),
    "targets dtype": (dict(targets=torch.ones(T)), ["targets is torch.float32", "allowed: an integer", ".long()"]),
    "weights dtype": (dict(weights=torch.ones(T).int()), ["weights is torch.int32", "allowed: a floating", ".float()"]),
    "kind": (dict(kind=torch.tensor([0, 1, 3, 0, 0, 0])), ["kind 3 at position 2", "0 none, 1 preference, 2 anchor"]),
    "advantages": (dict(advantages=None), ["advantages is None", "PREFERENCE", "give one advantage per position"]),
    "half a KL": (dict(ref_logp=torch.zeros(T)), ["ref_logp and kl_weights come together", "give both"]),
    "clip": (dict(clip_low=1.5), ["clip_low=1.5", "allowed: 0 ≤ clip_low ≤ 1"]),
    "denominator": (dict(anchor_denominator=0.0), ["anchor_denominator=0.0", "allowed: a positive number", "use 1.0"]),
    "temperature": (dict(temperature=0.0), ["temperature=0.0", "allowed: a positive number"]),
    "temperatures": (dict(temperature=torch.ones(2)), ["temperature has shape (2,)", "allowed: (6,)"]),
    "temperature ∞": (dict(temperature=INF), ["temperature=inf", "allowed: a positive number"]),
    "temperature text": (dict(temperature="1"), ["temperature=1", "allowed: a positive number"]),
    "temperature ()": (dict(temperature=number(0.0)), ["temperature=0.0", "allowed: a positive number"]),
    "temperature (1,)": (dict(temperature=torch.ones(1)), ["temperature has shape (1,)", "allowed: (6,)"]),
    "temperature column": (dict(temperature=but_one(0.0)), ["temperature is 0.0 at position 3", "a positive number"]),
    "temperature NaN": (dict(temperature=but_one(NAN)), ["temperature is nan at position 3", "a positive number"]),
    "temperatures dtype": (dict(temperature=torch.ones(T).bool()), ["torch.bool", "allowed: a floating", ".float()"]),
    "denominator ∞": (dict(preference_denominator=INF), ["preference_denominator=inf", "allowed: a positive number"]),
    "denominator ()": (dict(anchor_denominator=number(0.0)), ["anchor_denominator=0.0", "allowed: a positive number"]),
    "denominator count": (dict(anchor_denominator=number(0)), ["anchor_denominator=0", "allowed: a positive number"]),
    "denominator NaN": (dict(preference_denominator=number(NAN)), ["preference_denominator=nan", "a positive number"]),
    "denominators": (
        dict(anchor_denominator=torch.ones(T)),
        ["shape (6,)", "allowed: one real number", "sum"],
    ),
    "denominator mask": (dict(anchor_denominator=number(True)), ["torch.bool", "allowed: one real number"]),
    "λ": (dict(lam=1.5), ["lam=1.5", "allowed: a number from 0 to 1", "use None"]),
    "λ NaN": (dict(lam=NAN), ["lam=nan", "allowed: a number from 0 to 1"]),
    "λ ()": (dict(lam=number(-0.1)), ["lam=-0.1", "allowed: a number from 0 to 1"]),
    "λ (1,)": (dict(lam=torch.ones(1)), ["lam has shape (1,)", "allowed: one real number, shape ()"]),
    "λ switch": (dict(lam=True), ["lam=True", "allowed: a number from 0 to 1"]),
    "dual clip of 1": (dict(clip_c=1.0), ["clip_c=1.0", "above 1", "leave it out"]),
    "clip NaN": (dict(clip_high=NAN), ["clip_high=nan", "clip_high ≥ 0", "pass numbers"]),
    "clip tensor": (
        dict(clip_low=number(0.2)),
        ["clip_low=0.2", "allowed: 0 ≤ clip_low", "pass numbers"],
    ),
    "entropy": (dict(entropy_coef=NAN), ["entropy_coef=nan", "allowed: a finite number"]),
    "weight": (dict(weights=but_one(-1.0)), ["weights is -1.0 at position 3", "0 or a positive number", "negate"]),
    "weight NaN": (dict(weights=but_one(NAN)), ["weights is nan at position 3", "0 or a positive number"]),
    "KL weight": (
        dict(ref_logp=torch.zeros(T), kl_weights=but_one(-1.0)),
        ["kl_weights is -1.0 at position 3", "0 or a positive number"],
    ),
    "entropy weight": (dict(entropy_weights=but_one(INF)), ["entropy_weights is inf at position 3", "0 or a positive"]),
    "advantages mask": (dict(advantages=torch.ones(T).bool()), ["advantages is torch.bool", "allowed: a floating"]),
    "complex": (dict(weights=torch.ones(T).cfloat()), ["weights is torch.complex64", "allowed: a floating"]),
    "column device": (dict(weights=torch.empty(T, device="meta")), ["weights is on meta", "hidden on cpu", "move one"]),
}


def assert_says(error: pytest.ExceptionInfo, parts: list[str]) -> None:
    for part in parts:
        assert re.search(re.escape(part), str(error.value)), f"{part!r} is not in: {error.value}"


@pytest.mark.parametrize("name", BAD_HEADS)
def test_bad_heads(name):
    arguments, parts = BAD_HEADS[name]
    with pytest.raises(ValueError) as error:
        wavalign_loss(arguments["hidden"], arguments["weight"], inputs(), **_rest(arguments))
    assert_says(error, parts)
    if name != "rank":  # leading dimensions are welcome there
        with pytest.raises(ValueError) as error:
            linear_logprob(arguments["hidden"], arguments["weight"], torch.ones(T).long(), **_rest(arguments))
        assert_says(error, parts)


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs(name):
    changes, parts = BAD_INPUTS[name]
    for call in (
        lambda: wavalign_loss(*head().values(), inputs(**changes)),
        lambda: logits_loss(torch.randn(T, V), inputs(**changes)),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert_says(error, parts)


def test_unsupported_device():
    with pytest.raises(ValueError) as error:
        linear_logprob(*(t.to("meta") for t in head().values()), torch.ones(T, device="meta").long())
    assert_says(error, ["device meta is not supported", "allowed: cpu, cuda", "move the tensors there"])


def test_shapes_of_log_prob_arguments():
    with pytest.raises(ValueError) as error:
        linear_logprob(*head().values(), torch.ones(T - 1).long())
    assert_says(error, ["targets have shape (5,)", "hidden (6, 4)", "allowed", "shift or pad"])
    with pytest.raises(ValueError) as error:
        linear_logprob(*head().values(), torch.ones(T).long(), active=torch.ones(T))
    assert_says(error, ["active is torch.float32", "allowed: torch.bool", "active.bool()"])
    with pytest.raises(ValueError) as error:
        linear_logprob(*head().values(), torch.full((T,), V))
    assert_says(error, ["target 9 at active position 0", "allowed: 0 to 8", "active=False"])
    with pytest.raises(ValueError) as error:
        logits_loss(torch.randn(2, T, V), inputs())
    assert_says(error, ["logits have shape (2, 6, 9)", "allowed: (T, V)", "flatten"])


@pytest.mark.parametrize("temperature", [0.0, NAN, number(-1.0), but_one(0.0)], ids=str)
def test_temperatures_of_log_probs(temperature):
    with pytest.raises(ValueError, match="temperature.*allowed: a positive number"):
        linear_logprob(*head().values(), torch.ones(T).long(), temperature=temperature)


def test_one_look_at_the_device(monkeypatch):
    """All values are asked for at once: each question would make a GPU's queue run dry."""
    asked = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: asked.append(self) or tolist(self))
    for name in ("item", "__bool__", "__int__", "__float__", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
    x = inputs(temperature=torch.ones(T), ref_logp=torch.zeros(T), kl_weights=torch.ones(T))
    checks.check_inputs(x, T, torch.device("cpu"))
    checks.check_values(x.targets, None, V, x.temperature, x)
    assert len(asked) == 1


BAD_INDEXES = {
    "twice": (torch.tensor([1, 2, 3, 4, 4]), ["index has position 4 2 times", "each active position once", "leave it"]),
    "beyond": (torch.tensor([1, 2, 3, 6]), ["index is 6 at entry 3, of 6 positions", "each active position once"]),
    "dtype": (torch.tensor([1, 2, 3, 4]).int(), ["dtype torch.int32", "allowed: (A,) of torch.int64"]),
    "shape": (torch.tensor([[1, 2, 3, 4]]), ["shape (1, 4)", "allowed: (A,) of torch.int64"]),
}


@pytest.mark.parametrize("name", BAD_INDEXES)
def test_bad_indexes(name):
    index, parts = BAD_INDEXES[name]
    for call in (
        lambda: wavalign_loss(*head().values(), inputs(), index=index),
        lambda: linear_logprob(*head().values(), torch.ones(T).long(), index=index),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert_says(error, parts)


def test_an_index_that_is_not_the_active_positions():
    for index, times in (([1, 2, 3], "position 4 0 times"), ([0, 1, 2, 3, 4], "position 0 1 times")):
        with pytest.raises(ValueError, match=times):
            wavalign_loss(*head().values(), inputs(), index=torch.tensor(index))
    with pytest.raises(ValueError, match="active and index are both given"):
        linear_logprob(*head().values(), torch.ones(T).long(), active=torch.ones(T).bool(), index=torch.arange(T))


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_known_positions_change_nothing(impl):
    index = torch.tensor([4, 1, 3, 2])
    x, (h, w) = inputs(), head().values()
    expected = wavalign_loss(h, w, x, impl=impl)
    for options in (dict(index=index), dict(index=index, check=False), dict(check=False)):
        out = wavalign_loss(h, w, x, impl=impl, **options)
        assert torch.allclose(out.loss, expected.loss) and torch.allclose(out.logp, expected.logp)
    logp, _ = linear_logprob(h, w, x.targets, index=index, impl=impl)
    assert torch.allclose(logp, expected.logp)


def test_targets_of_inactive_positions_mean_nothing():
    assert torch.isfinite(wavalign_loss(*head().values(), inputs(), impl="torch").loss)
    active = inputs().kind != 0
    logp, _ = linear_logprob(*head().values(), inputs().targets, active=active, impl="torch")
    assert torch.isfinite(logp).all() and torch.count_nonzero(logp[~active]) == 0


def test_triton_without_an_accelerator(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pytest.importorskip("triton")
    with pytest.raises(ValueError) as error:
        wavalign_loss(*head().values(), inputs(), impl="triton")
    assert_says(error, ['impl="triton" needs an accelerator', "cpu", 'impl="auto"'])


def _rest(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in arguments.items() if k not in ("hidden", "weight")}
