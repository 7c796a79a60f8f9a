"""A folder belongs to one run; a killed owner's word is read, and what it left is removed, its own only."""

import json
import os
import subprocess
import sys
from multiprocessing import shared_memory as python_shm
from pathlib import Path

import pytest

from wavalign_ext.config import ConfigError
from wavalign_ext.integration import leftovers
from wavalign_ext.integration.processes import shared_memory
from wavalign_ext.integration.run_lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from wavalign_ext.integration.run_lock import RunLock
RunLock.acquire(Path(sys.argv[1])).note(temp="/tmp/wavalign-of-another")
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_by_the_owner_s_name_and_a_killed_one_is_recovered(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    with pytest.raises(
        ConfigError, match=rf"belongs to a run that is under way \(process {process.pid} on .*experiment_name"
    ):
        RunLock.acquire(tmp_path / "run")
    process.kill()
    process.wait()
    with RunLock.acquire(tmp_path / "run") as lock:
        assert lock.before["pid"] == process.pid and lock.before["temp"] == "/tmp/wavalign-of-another"
        assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / ".lock").exists()


def test_the_lock_is_this_process_s_until_it_is_given_back(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path)
    assert RunLock.acquire(tmp_path) is lock
    lock.note(temp="a" * 500), lock.note(temp="b")
    assert json.loads((tmp_path / ".lock").read_text())["temp"] == "b"
    lock.release(), lock.release()
    with RunLock.acquire(tmp_path) as again:
        assert again.before == {}


def test_a_word_that_cannot_be_read_is_no_word(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text('{"pid": 1')
    with RunLock.acquire(tmp_path) as lock:
        assert lock.before == {}


def test_what_a_run_noted_is_removed(tmp_path: Path) -> None:
    temp = leftovers.make_temp()
    (Path(temp) / "socket").touch()
    weights = Path(f"/tmp/rl-colocate-zmq-{Path(temp).name}-01000000-replica-0-rank-0.sock")
    weights.touch()
    session = tmp_path / "session_2026"
    (session / "sockets").mkdir(parents=True), (session / "logs").mkdir()
    segment = python_shm.SharedMemory(create=True, size=100)
    name = f"/dev/shm/{segment.name}"
    owner = {"temp": temp, "session": str(session), "shared_memory": [name, "/dev/shm/psm_gone"]}
    process = subprocess.Popen([sys.executable, "-c", USE.format(name=segment.name)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "used\n"
    segment.close()
    leftovers.clean(owner)
    assert not Path(temp).exists() and not weights.exists() and [path.name for path in session.iterdir()] == ["logs"]
    assert Path(name).exists()  # somebody has it mapped
    process.kill(), process.wait()
    leftovers.clean(owner)
    assert not Path(name).exists()


USE = """
import mmap, time
file = open("/dev/shm/{name}", "r+b")
held = mmap.mmap(file.fileno(), 0)
print("used", flush=True)
time.sleep(60)
"""


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    (tmp_path / "sockets").mkdir()
    owner = {"temp": str(tmp_path), "session": str(tmp_path), "shared_memory": [str(tmp_path), "/etc/passwd", 3, None]}
    assert leftovers.clean(owner) == [] and (tmp_path / "sockets").exists()
    assert leftovers.clean({}) == []


def test_segments_in_use_are_found() -> None:
    import psutil

    segment = python_shm.SharedMemory(create=True, size=100)
    assert f"/dev/shm/{segment.name}" in shared_memory([psutil.Process()])
    segment.close(), segment.unlink()
    assert f"/dev/shm/{segment.name}" not in shared_memory([psutil.Process()])
