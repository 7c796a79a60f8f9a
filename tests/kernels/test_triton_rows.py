"""The Triton row kernel and the edges of every implementation, in processes of their own: interpreted, and on a GPU.

Triton decides at the import of each kernel, its own library included, whether it compiles or interprets. A process that
has imported triton either way cannot change its mind, and which test file runs first must not matter: hence a child.
A single case:  TRITON_INTERPRET=1 PYTHONPATH=tests/kernels/cases pytest tests/kernels/cases/row_cases.py -k
The same cases compile for the accelerator that is there without the first of these (`cases/place.py`).
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("cases")
FILES = sorted(path.name for path in CASES.glob("*_cases.py"))
ROOT = Path(__file__).parents[2]


def in_child(*command: str | Path, interpret: str = "1") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(CASES), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("cases", FILES)
def test_interpreted(cases: str) -> None:
    child = in_child("-m", "pytest", "-q", "-p", "no:cacheprovider", CASES / cases)
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator is here")
@pytest.mark.parametrize("cases", FILES)
def test_compiled_on_a_gpu(cases: str) -> None:
    child = in_child("-m", "pytest", "-q", "-p", "no:cacheprovider", CASES / cases, interpret="0")
    assert child.returncode == 0, child.stdout + child.stderr


def test_no_access_outside_the_buffers() -> None:
    child = in_child(CASES / "guard.py", "shipped")
    assert child.returncode == 0, f"signal {-child.returncode}\n{child.stdout}{child.stderr}"


@pytest.mark.parametrize("fault", ["overrun", "underrun"])
def test_guard_notices_one_element(fault: str) -> None:
    assert in_child(CASES / "guard.py", fault).returncode == -signal.SIGSEGV
