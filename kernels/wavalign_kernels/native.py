"""Compiles the C files beside this one on first use and loads them by ctypes.

A call is divided into spans, and each span runs on a thread of its own.
"""

import ctypes
import hashlib
import os
import shlex
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

HERE = Path(__file__).parent
HEADER = HERE / "exponential.h"
OPTIONS = ["-O3", "-std=gnu11", "-shared", "-fPIC"]


class Struct(ctypes.Structure):
    """Pointers to tensors, which are kept alive, and numbers."""

    def __init__(self, *values: Tensor | int | None) -> None:
        super().__init__(*(v.data_ptr() if isinstance(v, Tensor) else v for v in values))
        self.kept = values


def struct(name: str, pointers: str, numbers: str = "") -> type[Struct]:
    """A struct of C: its pointers, then its longs."""
    kinds = [(field, ctypes.c_void_p) for field in pointers.split()]
    return type(name, (Struct,), {"_fields_": kinds + [(field, ctypes.c_long) for field in numbers.split()]})


def run_spans(run: Callable[..., None], *columns: Sequence) -> None:
    """run(a, b, …) for each line of the columns, all at once: ctypes lets go of the interpreter."""
    first, *others = zip(*columns, strict=True)
    with ThreadPoolExecutor(max(1, len(others))) as pool:  # starts a thread when there is something for it to do
        waiting = [pool.submit(run, *other) for other in others]
        run(*first)
        for done in waiting:
            done.result()


def has_units(units: set[str]) -> bool:
    """Whether the CPU has these, as Linux names them."""
    try:
        return units <= set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def load(
    source: str, units: set[str], options: list[str], *, without: str, needs: str, start: str | None = None
) -> ctypes.CDLL | None:
    """`source`, compiled once for a user; None without Linux or the CPU's units, with a warning where it could be had.

    `without` says what happens otherwise, `needs` what it takes; `start` is one of its functions, 0 if fit.
    """
    if not has_units(units):
        return None
    try:
        lib = ctypes.CDLL(str(_compiled(HERE / source, options)))
        if start is not None and getattr(lib, start)():
            raise OSError(f"{start} was refused")
    # No home is a RuntimeError, a quote without its twin in CC a ValueError.
    except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        warnings.warn(
            f"{without}, because wavalign_kernels cannot use its {source} ({reason}); needed: {needs} as cc or in CC, "
            "and a writable XDG_CACHE_HOME or ~/.cache",
            stacklevel=3,
        )
        return None
    return lib


def _compiled(source: Path, options: list[str]) -> Path:
    command = [*shlex.split(os.environ.get("CC") or "cc"), *OPTIONS, *options]
    digest = hashlib.sha256(source.read_bytes() + HEADER.read_bytes() + " ".join(command).encode()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wavalign_kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = folder.resolve()  # what is checked is what is loaded, wherever a link points later
    check_own(folder)
    path = folder / f"{source.stem}-{digest}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            made = Path(fresh) / path.name
            subprocess.run([*command, source, "-o", made], check=True, capture_output=True, text=True, errors="replace")
            made.chmod(0o700)  # whatever the umask
            made.replace(path)  # whole or not at all, whoever else is at it
    check_own(path)
    return path


def check_own(path: Path) -> None:
    """Refuse, as a PermissionError, what somebody else could put code into: `path`, or what lies above it.

    A folder or a file of this user that nobody else may write, no link; above it folders of this user or root in which
    others cannot rename (a sticky one as /tmp will do).
    """
    for place in (path, *path.parents):
        found, user = place.lstat(), os.geteuid()
        own = found.st_uid == user or (place != path and found.st_uid == 0)
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (
            place != path and stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        )
        if not own or shared or stat.S_ISLNK(found.st_mode):
            raise PermissionError(
                f"others can change {place}: {stat.filemode(found.st_mode)}, owner {found.st_uid}, you are {user}; "
                "allowed: your own, not writable by group or others; "
                "chmod go-w it, or set XDG_CACHE_HOME to a folder of your own"
            )
