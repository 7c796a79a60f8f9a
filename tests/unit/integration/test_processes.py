"""A process of the run that has died or is stopped is named, after a while; others may come and go."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from wavalign_ext.integration import processes
from wavalign_ext.integration.processes import Processes, lasting


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def started(title: str) -> subprocess.Popen:
    code = "import sys, time, setproctitle as t; t.setproctitle(sys.argv[1]); print('on', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, title], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    return process


@pytest.fixture
def engine() -> Iterator[subprocess.Popen]:
    process = started("VLLM::EngineCore")
    yield process
    process.kill(), process.wait()


def test_a_dead_one(engine: subprocess.Popen) -> None:
    watch = Processes(clock := Clock(), stopped_s=60)
    assert watch.look() is None
    engine.kill()
    time.sleep(0.2)  # a zombie: nobody has asked for its status
    assert watch.look() is None
    clock.now = 19
    assert watch.look() is None
    clock.now = 20
    assert watch.look() == f"a rollout engine's process (VLLM::EngineCore, process {engine.pid}) has died"
    engine.wait()
    assert watch.look() == f"a rollout engine's process (VLLM::EngineCore, process {engine.pid}) has died"


def test_one_of_some_is_dead(engine: subprocess.Popen) -> None:
    watch = Processes(Clock(), stopped_s=60)
    assert watch.look() is None and watch.dead(("VLLM::",)) is None
    engine.kill(), engine.wait()
    assert watch.dead(("raylet", "gcs_server")) is None
    told = watch.dead(("raylet", "VLLM::"))
    assert told == f"a rollout engine's process (VLLM::EngineCore, process {engine.pid}) has died"


def test_a_stopped_one_and_one_that_goes_on(engine: subprocess.Popen) -> None:
    watch = Processes(clock := Clock(), stopped_s=60)
    assert watch.look() is None
    os.kill(engine.pid, signal.SIGSTOP)
    time.sleep(0.2)
    for now in (0, 59):
        clock.now = now
        assert watch.look() is None
    os.kill(engine.pid, signal.SIGCONT)
    time.sleep(0.2)
    clock.now = 100
    assert watch.look() is None
    os.kill(engine.pid, signal.SIGSTOP)
    time.sleep(0.2)
    assert watch.look() is None
    clock.now = 160
    told = watch.look()
    assert told == f"a rollout engine's process (VLLM::EngineCore, process {engine.pid}) has been stopped for 60 s"


def test_others_come_and_go() -> None:
    process = started("ray::IDLE")
    watch = Processes(clock := Clock(), stopped_s=60)
    assert watch.look() is None
    process.kill(), process.wait()
    for now in (1, 1000):
        clock.now = now
        assert watch.look() is None
    assert process.pid not in watch.known


def test_an_actor_has_its_name_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    process = started("ray::IDLE")
    watch = Processes(clock := Clock(), stopped_s=60)
    assert watch.look() is None
    monkeypatch.setattr(processes, "title", lambda _: "ray::WorkerDict.init_model")
    assert watch.look() is None
    process.kill(), process.wait()
    assert watch.look() is None
    clock.now = 20
    told = watch.look()
    assert told is not None and told.startswith("a training worker (ray::WorkerDict.init_model, process")


@pytest.mark.parametrize(
    ("title", "what"),
    [
        ("ray::TaskRunnerV1.run", "the task runner"),
        ("ray::TransferQueueController", "TransferQueue's controller"),
        ("VLLM::Worker_TP0", "a rollout engine's process"),
        ("ray::IDLE", None),
        ("python", None),
        ("", None),
    ],
)
def test_what_lasts(title: str, what: str | None) -> None:
    assert lasting(title) == what


def test_killed_even_when_stopped(engine: subprocess.Popen) -> None:
    import psutil

    os.kill(engine.pid, signal.SIGSTOP)
    processes.kill([psutil.Process(engine.pid)])
    assert not psutil.pid_exists(engine.pid)
