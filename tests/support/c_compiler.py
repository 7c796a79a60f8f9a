"""Whether this machine can build and run the kernels' C."""

import subprocess
from collections.abc import Iterable
from pathlib import Path


def can_run(units: Iterable[str], options: list[str]) -> bool:
    """A CPU on Linux with these units, and a cc that knows them."""
    try:
        known = set(Path("/proc/cpuinfo").read_text().split())
        done = subprocess.run(["cc", *options, "-fsyntax-only", "-xc", "/dev/null"], capture_output=True)
    except OSError:
        return False
    return set(units) <= known and done.returncode == 0
