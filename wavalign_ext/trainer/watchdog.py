"""Ends a run whose worker is lost, which stock verl would go on waiting for.

When a vLLM engine dies, verl counts its rollouts as failures and then waits for it at the next weight update; a worker
that is lost inside a collective keeps the others waiting. So a thread beside the trainer looks at every worker:
vLLM's servers answer ``/health``, Ray's actors answer a ping when they are idle, and a dead one says so at once. The
trainer is then interrupted wherever it waits and raises :class:`WorkerLost`; a later start goes on from the last
checkpoint. Its own beat goes to the driver, which looks at the processes of its machine and ends a run that is silent:
``integration/guard.py``.
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
from wavalign_ext.integration.ending import GO_ON, AwakeClock, StopAsked, WorkerLost
from wavalign_ext.integration.mailbox import BEAT, PROBLEM, STOP

__all__ = ["Watchdog", "WorkerLost"]

GRACE_S = 30.0  # between the interrupt and the end of the process, should that not have helped
ANSWER_S = 5.0  # for one answer of a server; a longer silence counts towards heartbeat_timeout_s
UNREACHED_S = 30.0  # for an actor that Ray cannot reach and does not call dead
LINGER_S = 6.0  # after an error of the trainer's, for a look that tells what is behind it
LISTEN_S = 1.0  # between two looks for a signal that asks the run to end
LEAST_S, SLOWER = 120.0, 10.0  # a phase may take this long, or so many times its longest so far
Probe = Callable[[], str | None]  # what is wrong, or None

# Not by the machine's proxy: the servers are the cluster's own.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Watchdog:
    """Runs ``probes`` every ``poll_interval_s`` seconds; the first one that finds something ends the block.

    ``mailbox`` takes the beat and what was found to the driver, and brings the wish to stop; None: there is no driver.
    ``stoppable`` says whether the trainer can be interrupted for that wish. An error of the trainer's own waits
    ``linger_s`` for what is behind it.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        poll_interval_s: float,
        grace_s: float = GRACE_S,
        mailbox: Any = None,
        patience_s: float = 60.0,
        phase: Callable[[], str] = lambda: "",
        stoppable: Callable[[], bool] = lambda: True,
        linger_s: float = 0.0,
    ) -> None:
        self.probes, self.poll_interval_s, self.grace_s = list(probes), poll_interval_s, grace_s
        self.mailbox, self.patience_s, self.phase, self.stoppable = mailbox, patience_s, phase, stoppable
        self.linger_s = linger_s
        self.problem: str | None = None
        self.stop: str | None = None  # the signal that asked for it
        self.failing: dict[Probe, float] = {}  # probes that raise: since when
        self.over = threading.Event()

    def start(self) -> None:
        """Begin to look. From the main thread."""
        # SIGUSR1 is free in Ray's workers; ray.get lets a KeyboardInterrupt through and nothing else.
        self.before = signal.signal(signal.SIGUSR1, self._interrupt)
        self.thread = threading.Thread(target=self._watch, name="wavalign-watchdog", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Look no more."""
        self.over.set()
        signal.signal(signal.SIGUSR1, self.before)

    def __enter__(self) -> "Watchdog":
        self.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        self.end()
        self.explain(error)

    def explain(self, error: BaseException | None) -> None:
        """Raise what is behind an error of the trainer's, where a look at the workers tells."""
        if error is None:
            return
        if self.stop is not None and self.problem is None and isinstance(error, KeyboardInterrupt):
            raise StopAsked(f"stopped by {self.stop}") from error
        if isinstance(error, Exception) and self.problem is None:
            self.problem = self._behind()
        if self.problem is not None:
            self._tell(PROBLEM, self.problem)
            raise WorkerLost(f"{self.problem}: the run has ended; {GO_ON}")

    def _behind(self) -> str | None:
        """The trainer may notice first, and its own error says less; Ray knows of a death a moment after it."""
        ends = time.monotonic() + self.linger_s
        while (problem := self._look()) is None and time.monotonic() < ends:
            time.sleep(0.5)
        return problem

    def _watch(self) -> None:
        looked, beats, stopping = time.monotonic(), 0, False
        while not self.over.wait(min(LISTEN_S, self.poll_interval_s)):
            if self.stop is None and self.mailbox is not None:
                self.stop = self._asked_to_stop()
                stopping = self.stop is not None
            if stopping and self.stoppable():
                stopping = False
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            if time.monotonic() - looked < self.poll_interval_s:
                continue
            looked, beats = time.monotonic(), beats + 1
            self._tell(BEAT, {"number": beats, "phase": self.phase()})
            self.problem = self._look()
            if self.problem is not None:
                print(f"wavalign: {self.problem}: ending the run", flush=True)
                self._tell(PROBLEM, self.problem)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                if not self.over.wait(self.grace_s):
                    os._exit(1)
                return

    def _look(self) -> str | None:
        for probe in list(self.probes):
            try:
                problem = probe()
            except Exception as error:  # a look that fails must not be the last one
                problem = self._failed(probe, error)
            else:
                self.failing.pop(probe, None)
            if problem is not None:
                return problem
        return None

    def _failed(self, probe: Probe, error: Exception) -> str | None:
        """A probe that raises has found nothing out; for too long, that is a problem too."""
        if probe not in self.failing:
            self.failing[probe] = time.monotonic()
            print(f"wavalign: the watchdog could not look: {type(error).__name__}: {error}", flush=True)
        long = time.monotonic() - self.failing[probe]
        said = f"a worker could not be looked at for {long:.0f} s ({type(error).__name__}: {error})"
        return said if long > self.patience_s else None

    def _tell(self, name: str, word: Any) -> None:
        if self.mailbox is None:
            return
        try:
            self.mailbox.put(name, word)
        except Exception:  # Ray's head is gone: the driver finds that out
            pass

    def _asked_to_stop(self) -> str | None:
        try:
            return self.mailbox.get(STOP)
        except Exception:
            return None

    def _interrupt(self, *_: Any) -> None:
        if not self.over.is_set():
            raise KeyboardInterrupt(self.problem or self.stop)


class Pace:
    """Whether a phase of the run takes far longer than it has before.

    Without ``step_timeout_s`` a phase may take ten times its longest so far and at least two minutes; one that was not
    gone through yet, ``start_timeout_s``.
    """

    def __init__(self, settings: WatchdogConfig) -> None:
        self.settings = settings
        self.clock = AwakeClock(longest_gap_s=3 * settings.poll_interval_s + 30)
        self.longest: dict[str, float] = {}
        self.step = 0
        self.began = self.step_began = self.clock()
        self.phase = "the start"

    def enter(self, phase: str, step: int) -> None:
        """``phase`` begins, and the one before is over."""
        now = self.clock()
        self.longest[self.phase] = max(self.longest.get(self.phase, 0.0), now - self.began)
        if step != self.step:
            self.step, self.step_began = step, now
        self.phase, self.began = phase, now

    def __str__(self) -> str:
        return f"{self.phase} of step {self.step}" if self.step else self.phase

    def probe(self) -> str | None:
        """What is late, or None."""
        now, limit_s = self.clock(), self.settings.step_timeout_s
        if limit_s is not None and self.step and now - self.step_began > limit_s:
            return f"step {self.step} has taken longer than wavalign.watchdog.step_timeout_s={limit_s:g}: {self}"
        if limit_s is not None and self.step:
            return None
        known = self.longest.get(self.phase)
        limit = self.settings.start_timeout_s if known is None else max(LEAST_S, SLOWER * known)
        if now - self.began <= limit:
            return None
        usual = f"at most {known:.0f} s before" if known is not None else "not gone through before"
        return f"{self} has taken {now - self.began:.0f} s ({usual}; wavalign.watchdog.step_timeout_s sets a limit)"


def trainer_probes(trainer: Any, settings: WatchdogConfig) -> list[Probe]:
    """For the workers that verl's trainer has set up."""
    rewards = trainer.reward_loop_manager
    servers = {"rollout engine": trainer.llm_server_manager.get_addresses()}
    if rewards.reward_model_manager is not None:
        servers["reward model"] = rewards.reward_model_manager.server_addresses
    probes: list[Probe] = [
        server_probe(f"the {name} {number} at {address}", address, settings.heartbeat_timeout_s)
        for name, addresses in servers.items()
        for number, address in enumerate(addresses)
    ]
    probes.append(actor_probe("the load balancer", trainer.llm_server_manager.global_load_balancer))
    probes += [actor_probe(f"training worker {n}", actor) for n, actor in enumerate(trainer.actor_rollout_wg.workers)]
    # The handles for the agent loops are None with a co-located reward model.
    return probes + loop_probes("reward worker", rewards.reward_loop_workers, settings)


def loop_probes(name: str, actors: Sequence[Any], settings: WatchdogConfig) -> list[Probe]:
    """For actors that answer while they work: they have an event loop, and what blocks it blocks everybody."""
    return [actor_probe(f"{name} {n}", actor, 2 * settings.heartbeat_timeout_s) for n, actor in enumerate(actors)]


def queue_probes() -> list[Probe]:
    """For TransferQueue's controller and storage units, which this process has started."""
    from transfer_queue import interface

    probes = [actor_probe("TransferQueue's controller", interface._TQ_CONTROLLER)] if interface._TQ_CONTROLLER else []
    units = (interface._TQ_STORAGE or {}).get("SimpleStorage") or {}
    return probes + [actor_probe(f"TransferQueue's storage unit {n}", unit) for n, unit in enumerate(units.values())]


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


def actor_probe(name: str, actor: Any, silent_s: float | None = None) -> Probe:
    """Whether Ray says that an actor is dead, or its event loop has not answered for ``silent_s`` (None: it has none).

    One ping is under way at a time: a busy actor answers it later.
    """
    import ray
    from ray.exceptions import ActorUnavailableError, RayError

    def ask() -> Any:
        # Ray answers __ray_ready__ beside a loop that is blocked, and reads the arguments of a call in the loop.
        return actor.__ray_ready__.remote() if silent_s is None else actor.__ray_call__.remote(_answer)

    ping, asked = ask(), time.monotonic()
    unreached: float | None = None

    def probe() -> str | None:
        nonlocal ping, asked, unreached
        if ray.wait([ping], timeout=0)[0]:
            now = time.monotonic()
            try:
                ray.get(ping)
                unreached = None
            except ActorUnavailableError as error:  # it comes back, or Ray soon knows what has died
                unreached = now if unreached is None else unreached
                if now - unreached > UNREACHED_S:
                    return f"{name} cannot be reached ({_first_line(error)})"
            except RayError as error:
                return f"{name} has died ({_first_line(error)})"
            ping, asked = ask(), now
            return None
        silent = time.monotonic() - asked
        if silent_s is not None and silent > silent_s:
            why = "something blocks it, such as a reward term (wavalign.watchdog.heartbeat_timeout_s sets the limit)"
            return f"{name} has not answered for {silent:.0f} s: {why}"
        return None

    return probe


def _answer(actor: Any) -> None:
    """What a ping runs in the actor."""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


@contextmanager
def explaining(watch: Watchdog) -> Iterator[None]:
    """Errors of the block, each with what is behind it."""
    try:
        yield
    except BaseException as error:
        watch.explain(error)
        raise
