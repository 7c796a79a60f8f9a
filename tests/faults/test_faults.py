"""Every fault of the table on a real job: status, time, last line, checkpoints, resume, and what is left over."""

import json
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Fault, Victim
from table import FAULTS, KILLED_DRIVER

from wavalign_ext.checkpoints import whole

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture(scope="module")
def three_steps(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps: 2 and 3 are kept."""
    victim = Victim(tmp_path_factory.mktemp("base") / "run", "trainer.total_training_steps=3")
    assert victim.wait(400) == 0, victim.output[-3000:]
    assert victim.left() == [] and whole.saved_steps(victim.folder) == [2, 3]
    victim.forget()
    return victim.folder


@pytest.fixture(scope="module")
def spoilt(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket model with one weight that is not a number."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("spoilt") / "model"
    shutil.copytree(pocket / "model", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    shutil.rmtree(tmp_path, ignore_errors=True)


def tell(name: str, victim: Victim, status: int | None, left: list[str]) -> None:
    """What verdicts.py reads; status None: it has not ended in time."""
    print(f"FAULT {json.dumps({'name': name, 'status': status, 's': round(victim.took_s, 1), 'left': left})}")
    print(f"      {victim.lines[-1]}")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault(fault: Fault, folder: Path, pocket: Path, request: pytest.FixtureRequest) -> None:
    if fault.resumes:
        shutil.copytree(request.getfixturevalue("three_steps"), folder)
    if fault.prepare is not None:
        fault.prepare(folder)
    given = list(fault.overrides)
    given = [o.replace("{spoilt}", str(request.getfixturevalue("spoilt"))) if "{spoilt}" in o else o for o in given]
    victim = Victim(folder, *given, **fault.environment)
    try:
        if fault.hurt is not None:
            fault.hurt(victim)
            victim.hurt_at = time.monotonic()
        status = victim.wait(fault.within_s)
        left = victim.left()
    except AssertionError:
        tell(fault.name, victim, None, [])
        raise
    finally:
        if victim.process.poll() is None:
            victim.kill()
    tell(fault.name, victim, status, left)
    assert status == fault.status, victim.output[-4000:]
    assert victim.lines[-1].startswith("wavalign: ") and re.search(fault.line, victim.lines[-1]), victim.lines[-5:]
    for pattern in fault.said:
        assert re.search(pattern, victim.output), (pattern, victim.output[-4000:])
    steps = whole.saved_steps(folder)
    assert [step for step in steps if whole.problem(whole.step_folder(folder, step)) is None] == steps or fault.resumes
    if fault.saved is not None:
        assert tuple(steps) == fault.saved
    if fault.goes_on_from is not None:
        step, lines = whole.newest_whole(folder)
        assert step is not None and step >= fault.goes_on_from and not lines
    assert left == []
    victim.forget()


def test_a_driver_that_was_killed(folder: Path, pocket: Path) -> None:
    """Nobody could clear away: the next start does, and goes on."""
    victim = Victim(folder)
    victim.wait_for(r"step:2 - ")
    victim.look()
    victim.process.send_signal(signal.SIGKILL)
    victim.process.wait()
    time.sleep(5)  # Ray's processes follow their driver
    again = Victim(folder)
    status = again.wait(300)
    tell(KILLED_DRIVER, again, status, left := again.left())
    assert status == 0, again.output[-3000:]
    assert re.search(r"resumed step [12] ", again.output) and whole.saved_steps(folder) == [3, 4]
    assert left == []
    ours = [path for path in victim.left() if "/ray/" not in path]
    assert ours == []
    victim.forget(), again.forget()
