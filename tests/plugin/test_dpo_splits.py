"""DPO's update in verl's worker: TRL's on the same pairs, and the same on two ranks, in any order, in any cuts."""

import json
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import two_at_once
from formula_weights import weight
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

HERE = Path(__file__).parent
RELATIVE = 1e-5
EOS = 0
TRL = "trl==1.16.0"
STORED = HERE.parent / "fixtures" / "trl_dpo.json"  # made by the slow test below, WAVALIGN_STORE=1


def made(folder: Path, name: str) -> Path:
    """A model of 64 tokens whose weights are a formula of ``name``."""
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False)
    network = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, bos_token_id=None, eos_token_id=EOS, pad_token_id=EOS))
    weights = {key: weight(f"{name}.{key}", tuple(value.shape)) for key, value in network.state_dict().items()}
    network.load_state_dict(weights)
    network.save_pretrained(folder)
    Qwen2Tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("model"), "policy")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("reference"), "reference")


def drawn(pairs: int = 9, anchors: bool = False, vocabulary: int = 64) -> dict[str, Any]:
    """Ragged pairs, every answer ended; ids from 40 on are speech."""
    rng = random.Random(5)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(1, vocabulary) for _ in range(rng.randint(low, high))]

    made = [
        {"prompt": ids(2, 9), "chosen": [*ids(1, 12), EOS], "rejected": [*ids(1, 12), EOS]}
        | ({"target": [*ids(1, 12), EOS]} if anchors else {})
        for _ in range(pairs)
    ]
    kind = {"tokens": "text", "lambda": 0.4} if anchors else {"tokens": "all", "lambda": 1.0}
    return {"pairs": made, "order": list(range(pairs)), "beta": 0.5} | kind


ENVIRONMENT = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def replay(model: Path, reference: Path, case: dict[str, Any], out: Path, ranks: int = 1, micro: str = "1") -> Any:
    told = out.with_suffix(".json")
    told.write_text(json.dumps(case))
    arguments = [str(model), str(reference), str(told), micro, str(out)]
    done = forked.run(HERE / "replay_dpo.py", *arguments, ranks=ranks, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-8000:]
    return torch.load(out, weights_only=False)


def same(found: dict[str, Any], wanted: dict[str, Any], relative: float) -> None:
    for name, expected in wanted["grads"].items():
        difference = (found["grads"][name] - expected).norm() / expected.norm()
        assert difference < relative, f"{name}: {difference:.1e}"
    assert found["loss"] == pytest.approx(wanted["loss"], rel=relative)


@pytest.fixture(scope="module")
def first_steps(model: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our update on the pairs that TRL has been given: row by row, and on two ranks in another order."""
    case, folder = drawn(), tmp_path_factory.mktemp("first")
    shuffled = case | {"order": [3, 0, 8, 4, 1, 7, 2, 6, 5]}
    return two_at_once.both(
        partial(replay, model, reference, case, folder / "one.pt"),
        partial(replay, model, reference, shuffled, folder / "two.pt", ranks=2, micro="2"),
    )


@pytest.fixture(scope="module")
def first_step(first_steps: Any) -> Any:
    return first_steps[0]


def norms(step: dict[str, Any]) -> dict[str, float]:
    return {name: gradient.norm().item() for name, gradient in step["grads"].items()}


def test_the_first_step_is_trl_s(first_step: Any) -> None:
    """At a policy that is its own reference every loss is ln 2; here no margin is near 0."""
    stored, margins = json.loads(STORED.read_text()), torch.tensor(first_step["margin"])
    assert margins.abs().min() > 0.01 and margins.std() > 0.1
    assert abs(first_step["loss"] - stored["loss"]) < 1e-4
    assert norms(first_step) == pytest.approx(stored["gradient_norms"], rel=1e-4)


@pytest.mark.slow
def test_trl_says_so_today(model: Path, reference: Path, first_step: Any, tmp_path: Path) -> None:
    """TRL beside its dependencies of this environment, downloaded by name from PyPI."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "trl"), TRL]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if installed.returncode:
        pytest.skip(f"{TRL} cannot be installed: {installed.stderr.strip()[-200:]}")
    (tmp_path / "case.json").write_text(json.dumps(drawn()))
    told = [model, reference, tmp_path / "case.json", tmp_path / "trl.pt"]
    path = os.pathsep.join([str(tmp_path / "trl"), os.environ.get("PYTHONPATH", "")])
    given = os.environ | ENVIRONMENT | {"PYTHONPATH": path}
    subprocess.run([sys.executable, HERE / "trl_dpo.py", *told], env=given, check=True, timeout=300)
    theirs = torch.load(tmp_path / "trl.pt", weights_only=False)
    said = {"by": TRL, "loss": theirs["loss"], "gradient_norms": norms(theirs)}
    if os.environ.get("WAVALIGN_STORE"):
        STORED.write_text(json.dumps(said, indent=1) + "\n")
    print(f"loss of {TRL}: {theirs['loss']:.7f}, ours: {first_step['loss']:.7f}")
    assert abs(first_step["loss"] - theirs["loss"]) < 1e-4
    same(first_step, theirs, 1e-4)
    assert json.loads(STORED.read_text())["loss"] == pytest.approx(theirs["loss"], abs=1e-6)


def test_two_ranks_in_another_order_change_nothing(first_steps: Any) -> None:
    one, two = first_steps
    same(two, one, RELATIVE)
    assert sorted(two["margin"]) == pytest.approx(sorted(one["margin"]), rel=1e-4) and two["margin"] != one["margin"]
    assert all(gradient.norm() > 0 for gradient in one["grads"].values())


@pytest.fixture(scope="module")
def whole(model: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return replay(model, reference, drawn(5, anchors=True), tmp_path_factory.mktemp("whole") / "out.pt")


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "micro"), [(1, "4"), (1, "dynamic60"), (2, "2"), (2, "dynamic60")])
def test_text_pairs_beside_their_anchors_however_cut(
    model: Path, reference: Path, whole: Any, tmp_path: Path, ranks: int, micro: str
) -> None:
    case = drawn(5, anchors=True) | {"order": [4, 0, 3, 1, 2]}
    cut = replay(model, reference, case, tmp_path / "out.pt", ranks, micro)
    same(cut, whole, RELATIVE)
    assert cut["anchor_nll"] == pytest.approx(whole["anchor_nll"], rel=RELATIVE)
