"""What a run leaves outside its folder, and its removal: a temp folder of its own, shared memory, sockets.

vLLM's sockets and verl's lock files go into the temp folder, which workers are given as TMPDIR. Segments of shared
memory have random names, so they are noted while they are in use. Ray's logs stay: a failed run is read from them.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from wavalign_ext.integration.processes import shared_memory

PREFIX = "wavalign-"
SOCKET = "rl-colocate-zmq-"  # of the weights, in /tmp whatever TMPDIR says: patches.py


def make_temp() -> str:
    """A new temp folder for a run's workers. Its path is short: sockets lie in it."""
    return tempfile.mkdtemp(prefix=PREFIX)


def clean(owner: Mapping[str, Any]) -> list[str]:
    """Remove what ``owner`` noted and nobody uses; returns what was removed.

    ``temp``: the temp folder; ``shared_memory``: paths in /dev/shm; ``session``: Ray's session folder.
    """
    gone = []
    segments = [name for name in owner.get("shared_memory", []) if _is_segment(name)]
    used = shared_memory(_others()) if segments else set()
    for name in segments:
        if name not in used:
            Path(name).unlink(missing_ok=True)
            gone.append(name)
    if (temp := owner.get("temp")) and Path(temp).name.startswith(PREFIX) and _mine(temp):
        shutil.rmtree(temp, ignore_errors=True)
        gone.append(temp)
        for socket in Path("/tmp").glob(f"{SOCKET}{Path(temp).name}-*.sock"):
            socket.unlink(missing_ok=True)
            gone.append(str(socket))
    if (session := owner.get("session")) and Path(session).name.startswith("session_") and _mine(session):
        sockets = Path(session) / "sockets"
        if sockets.is_dir():
            shutil.rmtree(sockets, ignore_errors=True)
            gone.append(str(sockets))
    return gone


def _is_segment(name: Any) -> bool:
    return isinstance(name, str) and os.path.dirname(name) == "/dev/shm" and _mine(name)


def _mine(path: str) -> bool:
    try:
        return os.lstat(path).st_uid == os.getuid()
    except OSError:
        return False


def _others() -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if process.pid != os.getpid()]
