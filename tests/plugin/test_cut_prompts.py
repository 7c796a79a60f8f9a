"""On a CPU a seeded answer is the same whether vLLM computes its prompt whole, cuts it, or computes it anew."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_cut_prompt_does_not_end_the_engine_nor_change_the_answer(pocket: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.json"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("cut_prompts.py")), str(pocket / "model"), str(out)],
        env=dict(os.environ, VERL_PLATFORM="cpu", OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(out.read_text())
    assert found["cut"] == found["whole"] and found["preempted"] == found["whole"]
    assert found["preemptions"] > 0 and len({tuple(answer) for answer in found["whole"]}) == 6
