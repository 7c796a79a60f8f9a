"""What ``make`` says before it downloads anything, and which Python it takes."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The checker, on a machine that has everything."""
    spec = importlib.util.spec_from_file_location("machine", ROOT / "requirements/machine.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=50e9))
    monkeypatch.setattr(module, "memory_gb", lambda: 24.0)
    return module


def test_a_machine_that_has_everything_hears_nothing(machine: Any, tmp_path: Path, capsys) -> None:
    assert machine.main(str(tmp_path / ".venv")) == 0
    assert capsys.readouterr() == ("", "")


def test_all_that_is_missing_is_said_in_one_line(machine: Any, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3.5e9))
    monkeypatch.setattr(machine, "sys", SimpleNamespace(version_info=(3, 10, 4), stderr=sys.stderr))
    assert machine.main(str(tmp_path / ".venv")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("Python 3.10 is not", "no C compiler 'cc'", f"3.5 GB of disk are free at {tmp_path}, 12 are needed"):
        assert part in line


@pytest.mark.parametrize(("version", "fits"), [((3, 10), 0), ((3, 11), 1), ((3, 12), 1), ((3, 13), 1), ((3, 14), 0)])
def test_the_versions_of_the_lock(
    machine: Any, tmp_path: Path, monkeypatch, version: tuple[int, int], fits: int
) -> None:
    monkeypatch.setattr(machine, "sys", SimpleNamespace(version_info=(*version, 1)))
    assert (machine.missing(tmp_path / ".venv") == []) == bool(fits)


def test_an_environment_that_is_there_needs_no_disk(machine: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3e9))
    assert machine.missing(tmp_path) == []


def test_little_memory_is_said_and_stops_nothing(machine: Any, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(machine, "memory_gb", lambda: 8.0)
    assert machine.main(str(tmp_path / ".venv")) == 0
    assert "has 8.0 GB of memory, and `make train` takes up to 12.5" in capsys.readouterr().out


def make(tmp_path: Path, pythons: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """``make install`` where the path has these programs alone, written in sh."""
    tool, shell = shutil.which("make"), shutil.which("sh")
    if tool is None or shell is None:
        pytest.skip("no make here")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in pythons.items():
        (folder / name).write_text(f"#!{shell}\n{body}\n")
        (folder / name).chmod(0o755)
    command = [tool, "install", f"VENV={tmp_path / 'venv'}", *words]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")
    }
    environment["PATH"] = str(folder)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


SHIM, WORKS = "exit 127", f'exec "{sys.executable}" "$@"'


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3.11": WORKS, "python3.12": WORKS}, "python3.11"),
        ({"python3.11": SHIM, "python3.12": WORKS, "python3.13": WORKS}, "python3.12"),
        ({"python3.11": SHIM, "python3.13": WORKS}, "python3.13"),
    ],
)
def test_make_takes_the_first_python_that_works(tmp_path: Path, pythons: dict[str, str], taken: str) -> None:
    told = make(tmp_path, pythons, "--dry-run").stdout
    assert f"|| {taken} -m venv {tmp_path / 'venv'}" in told


def test_make_takes_the_python_that_it_is_given(tmp_path: Path) -> None:
    told = make(tmp_path, {"python3.11": WORKS}, "--dry-run", "PYTHON=/opt/python").stdout
    assert "|| /opt/python -m venv" in told


def test_without_a_python_make_ends_before_it_downloads(tmp_path: Path) -> None:
    done = make(tmp_path, {"python3.11": SHIM, "pip": "echo DOWNLOADED"})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("wavalign: cannot install: none of python3.11 python3.12 python3.13 works here")
    assert not (tmp_path / "venv").exists()


def test_without_a_compiler_make_ends_before_it_downloads(tmp_path: Path) -> None:
    done = make(tmp_path, {"python3.11": WORKS}, "CC=no-such-compiler")
    assert done.returncode == 2 and not (tmp_path / "venv").exists()
    assert "wavalign: cannot install: there is no C compiler" in done.stderr
