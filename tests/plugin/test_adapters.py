"""LoRA adapters on a bf16 base learn at the recipe's learning rate as they would on an fp32 one."""

from pathlib import Path

import forked
import pytest
import torch

SCRIPT = Path(__file__).with_name("adapters.py")
STEPS = 6
BF16 = (
    "actor_rollout_ref.actor.fsdp_config.model_dtype=bf16",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16",
)


def train(model: Path, out: Path, *overrides: str, ranks: int = 1) -> dict:
    arguments = [str(model), str(STEPS), str(out), *overrides]
    done = forked.run(SCRIPT, *arguments, ranks=ranks, VERL_PLATFORM="cpu", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-8000:]
    return torch.load(out, weights_only=False)


@pytest.fixture(scope="module")
def exact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return train(model, tmp_path_factory.mktemp("exact") / "out.pt")


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bf16_base_does_not_hold_its_adapters_still(model: Path, exact: dict, tmp_path: Path, ranks: int) -> None:
    found = train(model, tmp_path / "out.pt", *BF16, ranks=ranks)
    for kind, (share, size) in exact["moved"].items():
        assert share > 0.95, "the comparison must move"
        assert found["moved"][kind][0] == pytest.approx(share, rel=0.02)
        assert found["moved"][kind][1] == pytest.approx(size, rel=0.1)
    for name, dtype in found["dtypes"].items():
        assert dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
    assert found["lost"] == 0
    assert found["sent"].keys() == exact["sent"].keys() and len(found["sent"]) == 28
