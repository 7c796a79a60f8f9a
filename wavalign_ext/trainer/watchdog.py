"""Ends a run whose worker is lost, which stock verl would go on waiting for.

When a vLLM engine dies, verl counts its rollouts as failures and then waits for it at the next weight update; a worker
that is lost inside a collective keeps the others waiting. So a thread beside the trainer looks at every worker:
vLLM's servers answer ``/health``, Ray's actors answer a ping when they are idle, and a dead one says so at once. The
trainer is then interrupted wherever it waits and raises :class:`WorkerLost`; a later start goes on from the last
checkpoint.
"""

import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from wavalign_ext.config import WatchdogConfig

GRACE_S = 60.0  # between the interrupt and the end of the process, should that not have helped
Probe = Callable[[], str | None]  # what is wrong, or None

# Not by the machine's proxy: the servers are the cluster's own.
ANSWER_S = 5.0  # that a look waits for a server's answer
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class WorkerLost(RuntimeError):
    """A worker that the run needs is gone, or a step does not end."""


@contextmanager
def watching(trainer: Any, agent_loop_manager: Any, settings: WatchdogConfig) -> Iterator[None]:
    """Watch the workers of verl's trainer while the block runs in the main thread."""
    rewards = trainer.reward_loop_manager
    servers = {"rollout engine": trainer.llm_server_manager.get_addresses()}
    if rewards.reward_model_manager is not None:
        servers["reward model"] = rewards.reward_model_manager.server_addresses
    probes: list[Probe] = [
        server_probe(f"the {name} {number} at {address}", address, settings.heartbeat_timeout_s)
        for name, addresses in servers.items()
        for number, address in enumerate(addresses)
    ]
    groups = {
        "training worker": trainer.actor_rollout_wg.workers,
        "reward worker": rewards.reward_loop_workers,  # its handles are None with a co-located reward model
        "agent loop worker": agent_loop_manager.agent_loop_workers,
    }
    probes += [actor_probe(f"{name} {n}", actor) for name, actors in groups.items() for n, actor in enumerate(actors)]
    if settings.step_timeout_s is not None:
        probes.append(progress_probe(lambda: trainer.global_steps, settings.step_timeout_s))
    with Watchdog(probes, settings.poll_interval_s):
        yield


class Watchdog:
    """Runs ``probes`` every ``poll_interval_s`` seconds; the first one that finds something ends the block."""

    def __init__(self, probes: Sequence[Probe], poll_interval_s: float, grace_s: float = GRACE_S) -> None:
        self.probes, self.poll_interval_s, self.grace_s = probes, poll_interval_s, grace_s
        self.problem: str | None = None
        self.over = threading.Event()

    def __enter__(self) -> "Watchdog":
        # SIGUSR1 is free in Ray's workers; ray.get lets a KeyboardInterrupt through and nothing else.
        self.before = signal.signal(signal.SIGUSR1, self._interrupt)
        self.thread = threading.Thread(target=self._watch, name="wavalign-watchdog", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        self.over.set()
        signal.signal(signal.SIGUSR1, self.before)
        if isinstance(error, Exception) and self.problem is None:
            self.problem = self._look()  # the trainer may notice first; its own error says less
        if self.problem is not None and error is not None:
            raise WorkerLost(f"{self.problem}: the run has ended; start it again to go on from its last checkpoint")

    def _watch(self) -> None:
        while not self.over.wait(self.poll_interval_s):
            self.problem = self._look()
            if self.problem is not None:
                print(f"wavalign: {self.problem}: ending the run", flush=True)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                if not self.over.wait(self.grace_s):
                    os._exit(1)
                return

    def _look(self) -> str | None:
        return next((problem for probe in self.probes if (problem := probe()) is not None), None)

    def _interrupt(self, *_: Any) -> None:
        if not self.over.is_set():
            raise KeyboardInterrupt(self.problem)


def server_probe(name: str, address: str, heartbeat_timeout_s: float) -> Probe:
    """Whether an HTTP server of vLLM says that it is well; a busy one may be silent for ``heartbeat_timeout_s``."""
    heard = time.monotonic()

    def probe() -> str | None:
        nonlocal heard
        try:
            with _OPENER.open(f"http://{address}/health", timeout=ANSWER_S):
                heard = time.monotonic()
                return None
        except urllib.error.HTTPError as error:
            return f"{name} has died (its server answers {error.code})"
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ConnectionRefusedError):
                return f"{name} has died (nothing listens there)"
            silent = time.monotonic() - heard
            return f"{name} has said nothing for {silent:.0f} s ({reason})" if silent > heartbeat_timeout_s else None

    return probe


def actor_probe(name: str, actor: Any) -> Probe:
    """Whether Ray says that an actor is dead. One ping is under way at a time: a busy actor answers it later."""
    import ray
    from ray.exceptions import RayError

    ping = actor.__ray_ready__.remote()

    def probe() -> str | None:
        nonlocal ping
        if ray.wait([ping], timeout=0)[0]:
            try:
                ray.get(ping)
            except RayError as error:
                return f"{name} has died ({str(error).strip().splitlines()[0]})"
            ping = actor.__ray_ready__.remote()
        return None

    return probe


def progress_probe(step: Callable[[], int], step_timeout_s: float) -> Probe:
    """Whether ``step`` has changed within ``step_timeout_s`` seconds."""
    last, since = step(), time.monotonic()

    def probe() -> str | None:
        nonlocal last, since
        if step() != last:
            last, since = step(), time.monotonic()
        if time.monotonic() - since <= step_timeout_s:
            return None
        return f"step {last} has taken longer than wavalign.watchdog.step_timeout_s={step_timeout_s}"

    return probe
