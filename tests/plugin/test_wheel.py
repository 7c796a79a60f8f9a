"""What ``pip install`` brings: four import names, the data files they read, and the entry points."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy of what git would commit: a build leaves folders beside the sources.
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    assert names.returncode == 0, names.stderr
    for name in filter(None, names.stdout.splitlines()):
        if name.startswith(("wavalign_ext/", "kernels/", "recipes/")) or name in ("pyproject.toml", "README.md"):
            copy = folder / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    done = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return zipfile.ZipFile(next(folder.glob("wavalign-*.whl")))


def test_it_brings_the_import_names_and_no_other(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}
    assert tops == {"wavalign_ext", "wavalign_kernels", "wavalign_recipes", "hydra_plugins"}
    assert "hydra_plugins/__init__.py" not in wheel.namelist()  # other packages share this namespace


def test_it_brings_every_data_file(wheel: zipfile.ZipFile) -> None:
    inside = set(wheel.namelist())
    for package, folder in (("wavalign_recipes", ROOT / "recipes"), ("wavalign_ext", ROOT)):
        data = [path for path in (folder / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert len(data) > 10
        missing = [str(path.relative_to(folder)) for path in data if str(path.relative_to(folder)) not in inside]
        assert not missing


def test_it_registers_with_verl_vllm_and_the_shell(wheel: zipfile.ZipFile) -> None:
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    points = wheel.read(name).decode()
    assert "[verl.plugins]\nwavalign = wavalign_ext.plugin" in points
    assert "[vllm.general_plugins]\nwavalign = wavalign_ext.plugin:register_vllm" in points
    assert "[console_scripts]\nwavalign = wavalign_ext.cli:main" in points
