"""A small real job that something happens to, and what is looked at afterwards."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from jobs import HERE

from wavalign_ext.checkpoints import whole
from wavalign_ext.integration.leftovers import PREFIX, SOCKET
from wavalign_ext.integration.processes import shared_memory

SIZE = ["data.train_batch_size=2", "actor_rollout_ref.rollout.n=2", "data.val_max_samples=2", "trainer.test_freq=-1"]
SIZE += ["trainer.val_before_train=false", "trainer.total_training_steps=4", "trainer.save_freq=1"]


class Victim:
    """A job under a driver of its own, in a process group of its own. ``temp`` is its TMPDIR."""

    def __init__(self, folder: Path, *overrides: str, **environment: str) -> None:
        self.folder, self.log = folder, folder.with_suffix(f".{time.monotonic_ns()}.log")
        self.temp = Path(tempfile.mkdtemp(prefix="wf"))  # short: Ray's sockets are in it
        command = [sys.executable, "-m", "verl.trainer.main_ppo", "+recipe=wavalign", *SIZE]
        command += [f"trainer.default_local_dir={folder}", "trainer.logger=[console]", *overrides]
        parts = [str(HERE), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        given = dict(PYTHONPATH=os.pathsep.join(filter(None, parts)), VERL_PLATFORM="cpu", TMPDIR=str(self.temp))
        self.began, self.hurt_at = time.monotonic(), 0.0
        self.took_s = 0.0
        self.segments: set[str] = set()
        self.children: dict[int, psutil.Process] = {}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | given | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        """What is ours of the output, without Ray's prefix, and whatever stands last."""
        return [line for line in self.output.splitlines() if line.strip()]

    def look(self) -> None:
        """Note its processes and their shared memory."""
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.children.setdefault(child.pid, child)
        except psutil.Error:
            return
        self.segments |= shared_memory(list(self.children.values()))

    def wait_for(self, pattern: str, limit_s: float = 240) -> None:
        """Until the output has it."""
        self._until(lambda: re.search(pattern, self.output) is not None, f"{pattern!r} in the output", limit_s)

    def one(self, title: str, limit_s: float = 240) -> psutil.Process:
        """A process by the beginning of its title, as soon as there is one."""
        found: list[psutil.Process] = []

        def there() -> bool:
            for child in self.children.values():
                try:
                    if (child.cmdline() or [""])[0].rpartition("/")[2].startswith(title) and child.is_running():
                        found.append(child)
                except psutil.Error:
                    continue
            return bool(found)

        self._until(there, f"a process {title!r}", limit_s)
        return found[-1]

    def _until(self, done: Callable[[], bool], what: str, limit_s: float) -> None:
        ends = time.monotonic() + limit_s
        while True:
            self.look()
            if done():
                return
            assert self.process.poll() is None, f"it ended before {what}:\n{self.output[-3000:]}"
            assert time.monotonic() < ends, f"no {what} in {limit_s} s:\n{self.output[-3000:]}"
            time.sleep(0.3)

    def wait(self, limit_s: float) -> int:
        """Its exit status; seconds since it was hurt are ``took_s``."""
        ends = time.monotonic() + limit_s
        while self.process.poll() is None:
            self.look()
            if time.monotonic() > ends:
                self.took_s = limit_s
                self.kill()
                raise AssertionError(f"it did not end within {limit_s} s:\n{self.output[-3000:]}")
            time.sleep(0.3)
        self.took_s = time.monotonic() - (self.hurt_at or self.began)
        return self.process.returncode

    def kill(self) -> None:
        """It and all that it started."""
        self.look()
        for process in [*self.children.values(), psutil.Process(self.process.pid)]:
            try:
                process.kill()
            except psutil.Error:
                continue
        self.process.wait()

    def left(self, patience_s: float = 15) -> list[str]:
        """Processes, shared memory, sockets and temp folders that are still there."""
        ends = time.monotonic() + patience_s
        while True:
            found = [f"process {pid}" for pid, child in self.children.items() if _lives(child)]
            found += [name for name in self.segments if Path(name).exists()]
            found += [str(path) for path in self.temp.rglob("*") if path.is_socket()]
            found += map(str, Path("/tmp").glob(f"{SOCKET}{PREFIX}*"))
            # Ray's logs stay, and the compiler's cache.
            kept = ("ray", "torchinductor_")
            found += [str(path) for path in self.temp.glob("*") if not path.name.startswith(kept)]
            lock, aside = self.folder / ".lock", self.folder / whole.ASIDE  # a file there is a fault's own
            found += [str(path) for path, there in ((lock, lock.exists()), (aside, aside.is_dir())) if there]
            if not found or time.monotonic() > ends:
                return found
            time.sleep(0.5)

    def forget(self) -> None:
        """Remove its temp folder."""
        shutil.rmtree(self.temp, ignore_errors=True)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@dataclass(frozen=True)
class Fault:
    """What happens to a job, and how it must end.

    ``hurt`` waits for its moment and acts; None: the overrides or the folder are the fault. ``prepare`` gets the run's
    folder, with the checkpoints of a run of three steps where ``resumes``. ``line`` is searched in the last line, each
    of ``said`` in the output. ``saved`` are the steps that are there and whole at the end; None: not looked at.
    ``within_s`` counts from the hurt, or from the start.
    """

    name: str
    line: str
    status: int = 1
    hurt: Callable[[Victim], None] | None = None
    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    resumes: bool = False
    prepare: Callable[[Path], Any] | None = None
    said: tuple[str, ...] = ()
    saved: tuple[int, ...] | None = None
    goes_on_from: int | None = None
    within_s: float = 180


def signalled(title: str, number: int, after: str) -> Callable[[Victim], None]:
    """Send a signal to a process of the job, once the output has ``after``."""

    def hurt(victim: Victim) -> None:
        victim.wait_for(after)
        victim.one(title).send_signal(number)

    return hurt


def killed(title: str, after: str) -> Callable[[Victim], None]:
    return signalled(title, signal.SIGKILL, after)


def stopped(title: str, after: str) -> Callable[[Victim], None]:
    return signalled(title, signal.SIGSTOP, after)


def driver(*numbers: int, after: str, between_s: float = 2.0) -> Callable[[Victim], None]:
    """Send signals to the driver."""

    def hurt(victim: Victim) -> None:
        victim.wait_for(after)
        for count, number in enumerate(numbers):
            if count:
                time.sleep(between_s)
            victim.process.send_signal(number)

    return hurt
