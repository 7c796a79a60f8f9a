"""What an installation needs of this machine, said in one line before anything is downloaded.

``make`` runs it with the Python that it found, before there is an environment: the standard library alone.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

PYTHONS = ((3, 11), (3, 13))  # the oldest and the newest that the lock has wheels for
DISK_GB = 12  # the environment takes 8, the downloads on the way some more, the pocket assets and a run the rest
MEMORY_GB = 12.5  # `make train` at most


def missing(venv: Path) -> list[str]:
    """What makes an installation into ``venv`` fail, with the remedy; empty when nothing does."""
    found = []
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        here = ".".join(map(str, sys.version_info[:2]))
        found.append(f"Python {here} is not one of 3.11 to 3.13 (make PYTHON=python3.12)")
    compiler = shlex.split(os.environ.get("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        found.append(f"there is no C compiler {compiler!r} (apt install build-essential, or set CC)")
    there = next(folder for folder in (venv.absolute(), *venv.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    if there != venv.absolute() and free < DISK_GB:  # into an environment that is there comes little
        found.append(f"{free:.1f} GB of disk are free at {there}, {DISK_GB} are needed (make VENV=FOLDER)")
    return found


def memory_gb() -> float:
    """Of this machine, or what its container may use."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    told = limit.read_text().strip() if limit.is_file() else ""
    return min(whole, int(told) if told.isdecimal() else whole) / 1e9


def main(venv: str) -> int:
    """1, and one line, when something is missing. Little memory is said and stops nothing: tests need less."""
    if (memory := memory_gb()) < MEMORY_GB:
        print(f"wavalign: this machine has {memory:.1f} GB of memory, and `make train` takes up to {MEMORY_GB}")
    if found := missing(Path(venv)):
        print(f"wavalign: cannot install: {'; '.join(found)}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
