"""Kimi-Audio, converted, in stock vLLM: both streams' log-probs are those of its published order of operations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import published_kimi as kimi
import pytest

HERE = Path(__file__).parent
NEAR, TEMPERATURE = 1e-5, 0.02  # the temperature makes 50 times as much of a difference of logits


@pytest.mark.slow
def test_a_user_who_is_heard_by_codes_and_vectors(tmp_path: Path) -> None:
    source, out = kimi.build(tmp_path / "published"), tmp_path / "found.json"
    path = os.pathsep.join([str(HERE.parent / "support"), os.environ.get("PYTHONPATH", "")])
    given = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(HERE / "heard_pairs_in_vllm.py"), str(source), str(out)]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(out.read_text())
    print({name: part["worst"] for name, part in found.items() if name != "refused"})
    for name in ("whole", "cut", "prefix", "prefix again"):
        assert found[name]["worst"] * TEMPERATURE < NEAR, name
    answers = found["whole"]["answers"]
    assert found["cut"]["answers"] == answers == found["prefix again"]["answers"]
    assert all(answers[row] != answers[row + 4] for row in range(4))  # equal codes, other vectors
    assert found["prefix"]["cached"] == 0 and found["prefix again"]["cached"] > 0
    assert "9] vectors" in found["refused"]
