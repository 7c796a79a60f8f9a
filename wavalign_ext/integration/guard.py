"""The driver's side of a run's end: its folder's lock, signals, what hangs, what is left over, and the last line.

verl's driver waits for its task runner and does nothing else; what happens below it ends in a traceback of Ray's, or
never. So a thread looks at the run's processes and listens to the task runner, and every end goes through here.
"""

import atexit
import os
import re
import signal
import sys
import threading
import traceback
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

from wavalign_ext.config import WatchdogConfig
from wavalign_ext.integration import leftovers
from wavalign_ext.integration.ending import GO_ON, AwakeClock, last_line
from wavalign_ext.integration.mailbox import BEAT, PROBLEM, STOP, Mailbox
from wavalign_ext.integration.processes import Processes, kill, living, send, shared_memory, title
from wavalign_ext.integration.run_lock import RunLock

STOP_S = 120.0  # for the checkpoint of a run that was asked to stop
SHUTDOWN_S = 20.0  # for Ray's own end
HEAR_S = 2.0  # for a word of the task runner's
GLANCE_S = 0.25  # between two glances at the names in /dev/shm: who maps a new one can be gone a second later
SIGNALS = (signal.SIGINT, signal.SIGTERM)
RAYS_OWN = ("raylet", "gcs_server")
NOTE_EVERY = 12  # looks between two notes of what is left if this process is killed


class Guard:
    """From the lock of the run's folder to its last line. One for a process."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.lock = RunLock.acquire(self.folder)
        if gone := leftovers.clean(self.lock.before):
            print(f"wavalign: removed what a run that was killed has left: {', '.join(gone)}", flush=True)
        self.signal: int | None = None
        self.problem: str | None = None
        self.segments: set[str] = set()
        self.processes: Processes | None = None
        self.children: dict[int, psutil.Process] = {}  # all that were seen: an orphan is nobody's child any more
        self.over, self.threads = threading.Event(), list[threading.Thread]()
        self._ending, self._noting = threading.Lock(), threading.Lock()
        atexit.register(self._leave)

    def _leave(self) -> None:
        leftovers.clean(self.lock.owner)
        self.lock.release()

    def note(self, **facts: Any) -> None:
        """Write down what is to be cleaned, here or by the next start."""
        self.lock.note(**facts)

    # --- while the run goes on ------------------------------------------------------------------------------------

    def take_signals(self) -> None:
        """From the main thread. A thread of its own hears them at once; that one may be inside Ray for a second, in
        which two signals are one."""
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        _let_python_take()
        threading.Thread(target=self._hear_signals, args=(heard,), name="wavalign-signals", daemon=True).start()

    def _hear_signals(self, pipe: int) -> None:
        while True:
            for number in os.read(pipe, 64):
                if number in SIGNALS:
                    self._on_signal(number)

    def watch(self, settings: WatchdogConfig) -> None:
        """Begin to look at the run. Before Ray starts."""
        from ray._private import worker

        worker._post_init_hooks.append(_let_python_take)  # Ray takes SIGTERM, and ends the process
        self.settings = settings
        for name, work in (("guard", self._watch), ("glance", self._glance)):
            thread = threading.Thread(target=work, name=f"wavalign-{name}", daemon=True)
            self.threads.append(thread)
            thread.start()

    def _on_signal(self, number: int) -> None:
        name, again = signal.Signals(number).name, self.signal is not None
        self.signal = self.signal or number
        if again or not _ray_runs():
            threading.Thread(target=self.end, args=(f"ended at once by {name}: {GO_ON}",), daemon=True).start()
            return
        print(
            f"wavalign: {name}: ending the run; what can be saved of this step's start is saved. "
            "A second signal ends it at once",
            flush=True,
        )
        threading.Thread(target=self._ask_to_stop, args=(name,), daemon=True).start()

    def _ask_to_stop(self, name: str) -> None:
        try:
            mailbox = Mailbox()
            mailbox.put(STOP, name)
            heard = mailbox.get(BEAT) is not None
        except Exception:
            heard = False
        if not heard or not self.over.wait(STOP_S):
            self.end(f"ended by {name} before a checkpoint was written: {GO_ON}")

    def _watch(self) -> None:
        poll = self.settings.poll_interval_s
        clock = AwakeClock(longest_gap_s=3 * poll + 30)
        ear, looks = Ear(clock, self.settings), 0
        watch = self.processes = Processes(clock, self.settings.heartbeat_timeout_s)
        while not self.over.wait(poll):
            try:
                self.problem = watch.look()
                if self.problem is None and not self.over.is_set() and _ray_runs():
                    self.problem = ear.listen()
                looks += 1
                self.children |= {pid: known.process for pid, known in watch.known.items()}
                if looks % NOTE_EVERY == 1:
                    self._note_left()
            except Exception as error:  # a look that fails must not be the last one
                print(f"wavalign: the guard could not look: {type(error).__name__}: {error}", flush=True)
            if self.problem is not None:
                self.end(f"{self.problem}: {GO_ON}", f"{self.problem}: ending the run")

    def _glance(self) -> None:
        """Note new shared memory at once; a look at the processes, or a word with Ray, may take seconds."""
        seen = set[str]()
        while not self.over.wait(GLANCE_S):
            try:
                names = shared_names()
                if names - seen:  # what maps a segment is not cheap to find out
                    self._note_left()
                seen = names
            except Exception as error:
                print(f"wavalign: the guard could not glance: {type(error).__name__}: {error}", flush=True)

    def _note_left(self) -> None:
        with self._noting:
            if not self.over.is_set():
                self._look_at_children()
                self.note(shared_memory=sorted(self.segments), session=_session())

    def _look_at_children(self) -> None:
        processes = living()
        self.children |= {process.pid: process for process in processes}
        self.segments |= shared_memory(processes)

    # --- its end --------------------------------------------------------------------------------------------------

    def end(self, line: str, first: str = "") -> None:
        """End the process now, whatever its main thread does. Does not return.

        ``first`` is said at once. Nothing is said where the end is under way: its own line is the last.
        """
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()
        if first:
            print(f"wavalign: {first}", flush=True)
        self._clear_away(gently=False)
        sys.stdout.flush()
        print(f"\nwavalign: {line}", file=sys.stderr, flush=True)
        os._exit(128 + self.signal if self.signal else 1)

    def finish(self, error: BaseException | None) -> None:
        """The end of the job, in the main thread. Raises SystemExit, with the last line said, where it failed."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()
        self.over.set()
        told = None
        if error is not None:
            # With Ray's own processes all others go, and whichever is missed first is named.
            told = self.processes and self.processes.dead(RAYS_OWN) or self._heard(PROBLEM)
        gently, status = self._nobody_asks_ray(), 0 if error is None else 128 + self.signal if self.signal else 1
        self._clear_away(gently)
        if not gently:
            atexit.register(_exit_before_ray, status)
        if error is None:
            return
        sys.stdout.flush()
        if not told and not self.signal:
            traceback.print_exception(error)
        line = f"{told}: {GO_ON}" if told else last_line(error)
        if self.signal and not told:
            line = self._stopped(error)
        print(f"\nwavalign: {line}", file=sys.stderr, flush=True)
        raise SystemExit(status)

    def _stopped(self, error: BaseException) -> str:
        from wavalign_ext.integration.ending import StopAsked

        cause = getattr(error, "cause", None) or error
        name = signal.Signals(self.signal or 0).name
        return last_line(error) if isinstance(cause, StopAsked) else f"stopped by {name}: {GO_ON}"

    def _heard(self, name: str) -> Any:
        """A word of the task runner's, if Ray still gives it within a moment."""
        if not _ray_runs():
            return None
        waiting: Future = _in_thread(lambda: Mailbox().get(name))
        try:
            return waiting.result(timeout=5)
        except Exception:
            return None

    def _nobody_asks_ray(self) -> bool:
        """Whether no other thread of ours is inside Ray, or goes there any more; waits a moment for it."""
        for thread in self.threads:
            thread.join(timeout=2 * HEAR_S)
        futures.wait(_ASKING, timeout=2 * HEAR_S)
        return not _ASKING and not any(thread.is_alive() for thread in self.threads)

    def _clear_away(self, gently: bool) -> None:
        """Ray, its processes, and what they leave; the folder is given back last.

        A thread that is inside Ray when Ray shuts down ends the process, at once and with any status. So without
        ``gently`` its processes are killed and it is not told.
        """
        self.over.set()
        session = _session()
        if not gently:  # else it starts others while they are killed
            send([process for process in living() if title(process).startswith("raylet")], signal.SIGSTOP)
        with self._noting:
            self._look_at_children()
            self.segments |= {f"/dev/shm/{name}" for name in shared_names() if _named_by(name) in self.children}
        if gently and _ray_runs():
            import ray

            waiting = _in_thread(ray.shutdown)
            try:
                waiting.result(timeout=SHUTDOWN_S)
            except Exception as error:
                print(f"wavalign: Ray did not end by itself ({type(error).__name__})", flush=True)
        kill([process for process in self.children.values() if process.is_running()])
        leftovers.clean({**self.lock.owner, "shared_memory": sorted(self.segments), "session": session})
        self.lock.release()


def _let_python_take() -> None:
    """Have Python note these signals, and do nothing about them in the main thread."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)


class Ear:
    """Listens for the task runner's beat, without being held up by a Ray that does not answer."""

    def __init__(self, clock: AwakeClock, settings: WatchdogConfig) -> None:
        self.clock, self.settings = clock, settings
        self.beat: Any = None
        self.since = clock()
        self.waiting: Future | None = None

    def listen(self) -> str | None:
        """What is wrong, or None."""
        if self.waiting is None:
            self.waiting = _in_thread(lambda: Mailbox().get(BEAT))
        try:
            beat = self.waiting.result(timeout=HEAR_S)
            self.waiting = None
        except TimeoutError:
            beat = self.beat
        except Exception:  # Ray's head is gone, or not there yet
            beat, self.waiting = self.beat, None
        if beat != self.beat:
            self.beat, self.since = beat, self.clock()
        silent, limit = self.clock() - self.since, 2 * self.settings.heartbeat_timeout_s
        if self.beat is None:
            limit = self.settings.start_timeout_s
        if silent <= limit:
            return None
        where = f", last in {self.beat['phase']}" if self.beat else " since Ray has started"
        return f"the task runner has said nothing for {silent:.0f} s{where}"


_ASKING = set[Future]()  # what was asked of Ray and is not answered


def _in_thread(work: Any) -> Future:
    """Begin ``work``, which uses Ray, in a thread that does not keep the process from ending."""
    future: Future = Future()
    _ASKING.add(future)
    future.add_done_callback(_ASKING.discard)

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _exit_before_ray(status: int) -> None:
    """At exit Ray would shut down a cluster that is not there any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def shared_names() -> set[str]:
    """What is in /dev/shm, whoever it belongs to."""
    try:
        return set(os.listdir("/dev/shm"))
    except OSError:
        return set()


def _named_by(name: str) -> int | None:
    """The process that a semaphore of joblib's bears in its name."""
    found = re.match(r"sem\.loky-(\d+)-", name)
    return int(found[1]) if found else None


def _session() -> str | None:
    """Ray's session folder, if this process started that Ray."""
    if not _ray_runs():
        return None
    from ray._private.worker import global_worker

    node = global_worker.node
    return node.get_session_dir_path() if node is not None and node.head else None
