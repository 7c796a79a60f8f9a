"""Scripts in processes of their own that need not import torch, transformers and Ray again: forks of one that has.

These imports are most of what a short script costs. verl and vLLM are not among them: each script imports both anew,
with our patches or without one.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED = ["torch._dynamo", "torch.distributed.fsdp", "transformers.models.qwen2.modeling_qwen2", "ray", "tensordict"]
IMPORTED += ["datasets", "peft", "hydra", "scipy.signal"]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(IMPORTED)


def run(
    script: Path, *arguments: str, ranks: int = 1, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The script as ``__main__`` on each of ``ranks`` processes, told as by torchrun; what they print, in one text.

    Where one fails, the others are killed and its status is returned. Raises TimeoutError.
    """
    given = os.environ._data.copy() | {name.encode(): value.encode() for name, value in environment.items()}  # type: ignore[attr-defined]
    meeting = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    given |= {name.encode(): str(value).encode() for name, value in meeting.items()}
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "printed.txt"
        work = [(script, arguments, given, rank, printed) for rank in range(ranks)]
        processes: list[BaseProcess] = [_FORKS.Process(target=_work, args=part) for part in work]
        for process in processes:
            process.start()
        try:
            status = _wait(processes, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        text = printed.read_text(errors="replace")
    return subprocess.CompletedProcess([str(script), *arguments], status, text, text)


def _wait(processes: list[BaseProcess], until: float) -> int:
    for process in processes:
        while process.exitcode is None:
            process.join(0.1)
            if bad := [other.exitcode for other in processes if other.exitcode]:
                return bad[0]
            if time.monotonic() > until:
                raise TimeoutError("a script has not ended in time")
    return next((process.exitcode for process in processes if process.exitcode), 0)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _work(script: Path, arguments: list[str], environment: dict[bytes, bytes], rank: int, printed: Path) -> None:
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environb.clear()
    os.environb.update(environment | {name: str(rank).encode() for name in (b"RANK", b"LOCAL_RANK")})
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
