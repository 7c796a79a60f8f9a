"""What the tests of several kernels share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def child():
    """Runs code that may die, and that can import what lies in `cases`."""
    path = os.pathsep.join([str(Path(__file__).with_name("cases")), os.environ.get("PYTHONPATH", "")])

    def run(code: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True)

    return run
