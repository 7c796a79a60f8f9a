"""The run's processes on this machine, seen from the driver, whose children they are: dead or stopped ones.

Ray reports a dead actor to whoever asks it something, and nobody reports a stopped one, nor a process of vLLM's own.
"""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

import psutil

GONE_S = 20.0  # the run's own end, and a finer line about it, come first
# Processes that live as long as the run, by their titles; others come and go.
LASTING = {
    "ray::TaskRunner": "the task runner",
    "ray::WorkerDict": "a training worker",
    "ray::TransferQueueController": "TransferQueue's controller",
    "ray::SimpleStorageUnit": "a storage unit of TransferQueue",
    "ray::RewardLoopWorker": "a reward worker",
    "ray::HearingWorker": "an agent loop worker",
    "ray::GlobalRequestLoadBalancer": "the rollout engines' load balancer",
    "ray::vLLMHttpServer": "a rollout engine's server",
    "VLLM::": "a rollout engine's process",
    "raylet": "Ray's node process",
    "gcs_server": "Ray's head process",
}
SHM = re.compile(rb"\s(/dev/shm/\S+)\n")


@dataclass
class Known:
    """A process that was seen once. ``since``: when it was first seen dead or stopped; None while it is well."""

    process: psutil.Process
    title: str
    since: float | None = None


class Processes:
    """Children of this process. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float], stopped_s: float, gone_s: float = GONE_S) -> None:
        self.clock, self.stopped_s, self.gone_s = clock, stopped_s, gone_s
        self.known: dict[int, Known] = {}

    def look(self) -> str | None:
        """What is wrong with one of them, for long enough; or None."""
        now = self.clock()
        for process in living():
            name = title(process)
            if process.pid not in self.known or self.known[process.pid].process != process:
                self.known[process.pid] = Known(process, name)
            elif name:
                self.known[process.pid].title = name  # an actor has its name only after a while
        for pid, known in list(self.known.items()):
            if (bad := self._bad(known)) is None:
                known.since = None
            elif bad == "gone" and lasting(known.title) is None:
                del self.known[pid]
            else:
                known.since = now if known.since is None else known.since
                silent = now - known.since
                if silent >= (self.gone_s if bad == "gone" else self.stopped_s):
                    return self._named(known, "has died" if bad == "gone" else f"has been stopped for {silent:.0f} s")
        return None

    def dead(self, titles: tuple[str, ...]) -> str | None:
        """Which of those that were seen under one of these titles is dead now; or None."""
        for known in self.known.values():
            if known.title.startswith(titles) and self._bad(known) == "gone":
                return self._named(known, "has died")
        return None

    def _named(self, known: Known, did: str) -> str:
        what = lasting(known.title) or f"the process {known.title[:60]!r}"
        return f"{what} ({known.title[:40]}, process {known.process.pid}) {did}"

    def _bad(self, known: Known) -> str | None:
        try:
            status = known.process.status() if known.process.is_running() else psutil.STATUS_ZOMBIE
        except psutil.Error:
            return "gone"
        if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return "gone"
        return "stopped" if status == psutil.STATUS_STOPPED else None


def living() -> list[psutil.Process]:
    """All descendants of this process."""
    try:
        return psutil.Process().children(recursive=True)
    except psutil.Error:
        return []


def lasting(title: str) -> str | None:
    """What a process is, by its title, if it has to live as long as the run."""
    return next((name for start, name in LASTING.items() if title.startswith(start)), None)


def title(process: psutil.Process) -> str:
    """What it calls itself, without the path of its program; nothing where it is gone."""
    try:
        first = (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""
    return first.rpartition("/")[2] if first.startswith("/") else first


def shared_memory(processes: list[psutil.Process]) -> set[str]:
    """Segments in /dev/shm that these processes have mapped and that still have a name."""
    found: set[str] = set()
    for process in processes:
        try:
            with open(f"/proc/{process.pid}/maps", "rb") as file:
                found |= {name.decode(errors="replace") for name in SHM.findall(file.read())}
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    """A signal to each that is still there."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue


def kill(processes: list[psutil.Process]) -> None:
    """End these at once; a stopped one as well."""
    send(processes, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)
