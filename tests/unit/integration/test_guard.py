"""The driver's end without a Ray: signals, a problem that is found, a job that failed; the last line is ours."""

import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from wavalign_ext.config import WatchdogConfig
from wavalign_ext.integration import guard as guard_module
from wavalign_ext.integration.ending import GO_ON
from wavalign_ext.integration.guard import Ear

START = """
import sys, time
from wavalign_ext.config import WatchdogConfig
from wavalign_ext.integration import leftovers, processes
from wavalign_ext.integration.guard import Guard
guard = Guard(sys.argv[1])
guard.take_signals()
temp = leftovers.make_temp()
guard.note(temp=temp)
with open(sys.argv[2], "w") as told:
    told.write(temp + "\\n")
"""


def driver(run: Path, code: str) -> tuple[subprocess.Popen, Path]:
    told = run / f"temp{len(list(run.iterdir()))}"
    process = subprocess.Popen(
        [sys.executable, "-c", START + code, str(run), str(told)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ends = time.monotonic() + 60
    while not told.is_file() or not told.read_text().endswith("\n"):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return process, Path(told.read_text().strip())


def ended(process: subprocess.Popen) -> tuple[int, str]:
    out, _ = process.communicate(timeout=60)
    return process.returncode, out.strip().splitlines()[-1]


def clean(run: Path, temp: Path) -> bool:
    return not temp.exists() and not (run / ".lock").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_ray(tmp_path: Path, number: signal.Signals, status: int) -> None:
    process, temp = driver(tmp_path, "time.sleep(60)")
    assert temp.exists() and (tmp_path / ".lock").exists()
    process.send_signal(number)
    assert ended(process) == (status, f"wavalign: ended at once by {number.name}: {GO_ON}") and clean(tmp_path, temp)


def test_a_process_that_died_ends_a_driver_that_waits(tmp_path: Path) -> None:
    code = """
import subprocess
processes.GONE_S = 0.5
guard_processes = processes.Processes
from wavalign_ext.integration import guard as module
module.Processes = lambda clock, stopped_s: guard_processes(clock, stopped_s, gone_s=0.5)
title = "import setproctitle as t, time; t.setproctitle('VLLM::EngineCore'); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", title])
guard.watch(WatchdogConfig(poll_interval_s=0.2))
time.sleep(1.5)
child.kill()
time.sleep(60)
"""
    process, temp = driver(tmp_path, code)
    status, line = ended(process)
    assert status == 1 and line.startswith("wavalign: a rollout engine's process (VLLM::EngineCore") and GO_ON in line
    assert clean(tmp_path, temp)


@pytest.mark.parametrize(
    "parent",
    [
        pytest.param("exec(sys.argv[1])", id="its own"),
        # vLLM's worker goes on for seconds after its engine was killed, as nobody's child.
        pytest.param("subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()", id="an orphan's"),
    ],
)
def test_the_shared_memory_of_a_process_that_is_soon_dead_is_removed(tmp_path: Path, parent: str) -> None:
    """Long before the next look at the processes nobody maps it any more, so that nothing tells whose it was."""
    code = f"""
import subprocess
guard.watch(WatchdogConfig(poll_interval_s=30))
make = "import time; from multiprocessing import shared_memory as m, resource_tracker as t; "
make += "s = m.SharedMemory(create=True, size=64); t.unregister(s._name, 'shared_memory'); "
make += "print(s.name, flush=True); time.sleep(60)"
parent = "import subprocess, sys; " + {parent!r}
child = subprocess.Popen([sys.executable, "-c", parent, make], stdout=subprocess.PIPE, text=True)
name = child.stdout.readline().strip()
time.sleep(1)
child.kill()
child.wait()
guard.finish(None)
print(name)
"""
    process, temp = driver(tmp_path, code)
    status, name = ended(process)
    assert status == 0 and name.startswith("psm_") and not Path("/dev/shm", name).exists() and clean(tmp_path, temp)


def test_a_semaphore_that_a_child_has_put_its_number_on_is_removed(tmp_path: Path) -> None:
    code = """
import subprocess
guard.watch(WatchdogConfig(poll_interval_s=0.2))
make = "import os, time; open(f'/dev/shm/sem.loky-{os.getpid()}-test', 'w'); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", make])
time.sleep(1)
child.kill()
child.wait()
guard.finish(None)
print(child.pid)
"""
    process, temp = driver(tmp_path, code)
    status, pid = ended(process)
    assert status == 0 and not Path(f"/dev/shm/sem.loky-{pid}-test").exists() and clean(tmp_path, temp)


def test_a_job_that_failed(tmp_path: Path) -> None:
    process, temp = driver(tmp_path, "guard.finish(OSError(28, 'No space left on device'))")
    line = f"wavalign: OSError: [Errno 28] No space left on device. Its traceback is above; {GO_ON}"
    assert ended(process) == (1, line) and clean(tmp_path, temp)


def test_a_job_that_ended_well(tmp_path: Path) -> None:
    process, temp = driver(tmp_path, "guard.finish(None)\nprint('results')")
    assert ended(process) == (0, "results") and clean(tmp_path, temp)


def test_a_problem_found_at_the_end_of_a_job_is_not_its_last_line(tmp_path: Path) -> None:
    code = """
from wavalign_ext.integration import guard as module
class Late:
    known = {}
    def __init__(self, clock, stopped_s): pass
    def look(self):
        guard.over.wait()
        time.sleep(1)
        return "TransferQueue's controller has died"
module.Processes = Late
guard.watch(WatchdogConfig(poll_interval_s=0.1))
time.sleep(0.5)
guard.finish(None)
print("results", flush=True)
time.sleep(2)
"""
    process, temp = driver(tmp_path, code)
    assert ended(process) == (0, "results") and clean(tmp_path, temp)


def test_a_process_that_ends_otherwise_gives_the_folder_back(tmp_path: Path) -> None:
    process, temp = driver(tmp_path, "raise SystemExit('refused')")
    assert ended(process) == (1, "refused") and clean(tmp_path, temp)


def test_what_a_killed_driver_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process, temp = driver(tmp_path, "time.sleep(60)")
    process.kill(), process.wait()
    assert temp.exists()
    again, other = driver(tmp_path, "")
    assert ended(again) == (0, f"wavalign: removed what a run that was killed has left: {temp}")
    assert not temp.exists() and clean(tmp_path, other)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


RAY = """
import ray
from wavalign_ext.integration import guard as module
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
@ray.remote
def wait(): time.sleep(100)
waiting = wait.remote()
"""


def test_a_driver_that_is_inside_ray_is_ended_with_its_status_and_line(tmp_path: Path) -> None:
    """Ray, shut down under its caller, ends the process at times with status 0 or 1 and a line of its own:
    "The core worker has already been shutdown … The process will exit"."""
    code = f"""{RAY}
import os, threading
ray.shutdown = lambda: os._exit(0)
threading.Timer(1, guard.end, ("lost",)).start()
ray.get(waiting)
"""
    process, temp = driver(tmp_path, code)
    assert ended(process) == (1, "wavalign: lost") and clean(tmp_path, temp)


def test_a_ray_that_died_is_named_before_what_died_with_it(tmp_path: Path) -> None:
    code = f"""{RAY}
import psutil
guard.watch(WatchdogConfig(poll_interval_s=0.2))
time.sleep(2)
[child] = [child for child in psutil.Process().children(True) if child.name() == "raylet"]
child.kill()
try:
    ray.get(waiting)
except Exception as error:
    guard.finish(error)
"""
    process, temp = driver(tmp_path, code)
    status, line = ended(process)
    assert status == 1 and line.startswith("wavalign: Ray's node process (raylet, process") and GO_ON in line
    assert clean(tmp_path, temp)


@pytest.mark.parametrize(
    ("numbers", "status", "line"),
    [
        ([signal.SIGTERM], 143, "ended by SIGTERM before a checkpoint was written"),
        ([signal.SIGINT, signal.SIGINT], 130, "ended at once by SIGINT"),
    ],
)
def test_signals_while_the_driver_is_inside_ray(
    tmp_path: Path, numbers: list[signal.Signals], status: int, line: str
) -> None:
    """Ray takes SIGTERM when it starts; in its calls Python sees two signals of one kind as one."""
    # One signal finds nobody to ask for a checkpoint; two come while the task runner makes up its mind.
    asked = "" if len(numbers) == 1 else "module.Mailbox = lambda: time.sleep(60)"
    code = f"guard.watch(WatchdogConfig())\n{RAY}\n{asked}\nprint('up', flush=True)\nray.get(waiting)"
    process, temp = driver(tmp_path, code)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "up":
        assert process.poll() is None
    time.sleep(0.5)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.05)
    assert ended(process) == (status, f"wavalign: {line}: {GO_ON}") and clean(tmp_path, temp)


def test_a_job_ends_well_though_ray_does_not_answer(tmp_path: Path) -> None:
    code = f"""{RAY}
asked = module._in_thread(lambda: ray.get(waiting))
guard.finish(None)
print("results")
"""
    process, temp = driver(tmp_path, code)
    assert ended(process) == (0, "results") and clean(tmp_path, temp)


def test_a_task_runner_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, words = Clock(), [None]
    ear = Ear(clock, WatchdogConfig(start_timeout_s=500))  # type: ignore[arg-type]

    def at_once(_: object) -> Future:
        future: Future = Future()
        future.set_result(words[-1])
        return future

    monkeypatch.setattr(guard_module, "_in_thread", at_once)

    def looked(now: float, word: object = None) -> str | None:
        clock.now = now
        words.append(word)  # type: ignore[arg-type]
        return ear.listen()

    one = {"number": 1, "phase": "the rollouts of step 1"}
    assert looked(500) is None
    assert looked(501) == "the task runner has said nothing for 501 s since Ray has started"
    assert looked(502, one) is None and looked(622, one) is None
    assert looked(623, one) == "the task runner has said nothing for 121 s, last in the rollouts of step 1"
    assert looked(624, {"number": 2, "phase": "the training of step 1"}) is None


def test_a_ray_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    ear = Ear(clock, WatchdogConfig(start_timeout_s=500))  # type: ignore[arg-type]
    monkeypatch.setattr(guard_module, "_in_thread", lambda _: Future())  # never done
    monkeypatch.setattr(guard_module, "HEAR_S", 0.01)
    assert ear.listen() is None
    clock.now = 501
    assert ear.listen() is not None
