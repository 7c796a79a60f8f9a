"""Bad input is refused with the value, what is allowed, and the remedy."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from wavalign_kernels import LossInputs, linear_logprob, logits_loss, wavalign_loss

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
    "impl": (head(impl="cuda"), ["impl='cuda'", "allowed: auto, triton, torch, reference"]),
}

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
