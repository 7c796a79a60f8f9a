"""LoRA adapters on a bf16 base learn at the recipe's learning rate as they would on an fp32 one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("adapters.py")
STEPS = 6
BF16 = (
    "actor_rollout_ref.actor.fsdp_config.model_dtype=bf16",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16",
)


def train(model: Path, out: Path, *overrides: str, ranks: int = 1) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port=0"]
    command += ["--master_addr=127.0.0.1", "--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(model), str(STEPS), str(out), *overrides],
        env=dict(os.environ, VERL_PLATFORM="cpu", OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
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
