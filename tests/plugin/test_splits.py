"""The same mini-batch on one rank and on two, in micro-batches of 1, 2, 4 and dynamic: the same gradient and λ."""

import functools
import tempfile
from functools import partial
from pathlib import Path

import forked
import pytest
import torch
import two_at_once

RELATIVE = 1e-5
QUICK = [(1, "4"), (2, "dynamic60")]
SLOW = [(1, "2"), (1, "dynamic60"), (2, "1"), (2, "2"), (2, "4")]
SPLITS = QUICK + [pytest.param(*split, marks=pytest.mark.slow) for split in SLOW]
REPLAY = Path(__file__).with_name("replay.py")


KL = ("wavalign.kl.text=0.05", "wavalign.kl.speech=0.02")


@functools.cache
def replay(model: Path, ranks: int, micro: str, *overrides: str, one_pass: bool = True) -> dict:
    environment = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "ONE_PASS": str(int(one_pass))}
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.pt")
        done = forked.run(REPLAY, str(model), micro, out, *KL, *overrides, ranks=ranks, **environment)
        assert done.returncode == 0, done.stderr[-8000:]
        return torch.load(out, weights_only=False)


@pytest.fixture(scope="module")
def whole(model: Path) -> dict:
    return replay(model, 1, "1")


@pytest.mark.parametrize(("ranks", "micro"), SPLITS)
def test_gradients_do_not_depend_on_the_split(model: Path, whole: dict, ranks: int, micro: str) -> None:
    cut = replay(model, ranks, micro)
    for name, expected in whole["grads"].items():
        difference = (cut["grads"][name] - expected).norm() / expected.norm()
        assert difference < RELATIVE, f"{name}: {difference:.1e}"
    assert cut["loss"] == pytest.approx(whole["loss"], rel=RELATIVE)
    assert cut["anchor_nll"] == pytest.approx(whole["anchor_nll"], rel=RELATIVE)
    assert set(cut["lambdas"]) == set(whole["lambdas"]) and 0 < cut["lambdas"][0] < 1


def test_the_mini_batch_tests_something(whole: dict) -> None:
    assert all(gradient.norm() > 0 for gradient in whole["grads"].values())
    assert whole["anchor_nll"] > 1


FUSED = "actor_rollout_ref.model.use_fused_kernels=true"


@pytest.mark.parametrize("overrides", [(), ("wavalign.kl.speech=0",)], ids=["all tokens", "text rollouts only"])
def test_the_fused_head_gives_the_same(model: Path, overrides: tuple[str, ...]) -> None:
    micro = "dynamic60"
    plain, fused = two_at_once.both(
        partial(replay, model, 1, micro, FUSED.replace("true", "false"), *overrides),
        partial(replay, model, 1, micro, FUSED, *overrides),
    )
    for name in ("log_probs", "entropy"):
        assert (fused[name] - plain[name]).abs().max() < 1e-5 and plain[name].abs().min() > 0
    for name, expected in plain["grads"].items():
        difference = (fused["grads"][name] - expected).norm() / expected.norm()
        assert difference < RELATIVE, f"{name}: {difference:.1e}"
    assert fused["loss"] == pytest.approx(plain["loss"], rel=RELATIVE)


HSDP = "actor_rollout_ref.actor.fsdp_config.fsdp_size=1"  # each of two ranks has all parameters, gradients are averaged


@pytest.mark.parametrize(
    ("ranks", "micro", "sharding"),
    [
        pytest.param(1, "dynamic60", (), marks=pytest.mark.slow),
        (2, "4", ()),
        pytest.param(2, "4", (HSDP,), marks=pytest.mark.slow),
    ],
    ids=["one", "FSDP", "HSDP"],
)
def test_one_pass_gives_the_gradient_of_two(model: Path, ranks: int, micro: str, sharding: tuple[str, ...]) -> None:
    two, one = two_at_once.both(
        partial(replay, model, ranks, micro, FUSED, one_pass=False),
        partial(replay, model, ranks, micro, FUSED, *sharding),
    )
    for name, expected in two["grads"].items():
        difference = (one["grads"][name] - expected).norm() / expected.norm()
        assert difference < 1e-6, f"{name}: {difference:.1e}"
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
    assert one["anchor_nll"] == pytest.approx(two["anchor_nll"], rel=1e-6)
