"""Subprocesses of a module's tests, two at a time: most of their time is one thread that imports."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

_STARTING = threading.Lock()


def both(*calls: Callable[[], Any]) -> list[Any]:
    """What each call returns."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@contextmanager
def started(calls: dict[str, Callable[[], Any]]) -> Iterator[dict[str, Future[Any]]]:
    """A future for each call; those that nobody waited for when the block ends are not begun."""
    pool = ThreadPoolExecutor(2)
    try:
        yield {name: pool.submit(call) for name, call in calls.items()}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run(command: list[str], timeout: float, **more: Any) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` with its output as text, with a copy of the environment.

    pytest writes the running test's name to the environment, which a process that starts in a thread just then would
    read while it moves ("Bad address"). The copy is made in one call, so that nothing changes it halfway.
    """
    more.setdefault("env", os.environ._data.copy())  # type: ignore[attr-defined]
    with _STARTING:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)
