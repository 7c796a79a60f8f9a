"""How the tests are dealt out to several processes: by groups, no two jobs at once, the pocket model last."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parents[2]
MODULE = """
import os, time
import pytest

@pytest.fixture
def pocket():
    pass

@pytest.mark.parametrize("n", range(3))
def test_it(n{fixture}):
    time.sleep(0.1)
    with open({log!r}, "a") as file:
        print({name!r}, os.environ["PYTEST_XDIST_WORKER"], os.environ["OMP_NUM_THREADS"], file=file)
"""


def test_a_group_runs_on_one_process_jobs_first(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests" / "e2e").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    log = tmp_path / "log"
    for name, fixture in (("a", ", pocket"), ("b", ""), ("c", ""), ("e2e/job1", ""), ("e2e/job2", "")):
        code = MODULE.format(fixture=fixture, name=Path(name).name, log=str(log))
        path = tmp_path / "tests" / name
        path.with_name(f"test_{path.name}.py").write_text(code)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "OMP"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    command += ["--numprocesses", "2", "--dist", "loadscope", "--no-loadscope-reorder"]
    done = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 15 and {threads for _, _, threads in lines} == {"1"}
    workers = {name: {worker for other, worker, _ in lines if other == name} for name, _, _ in lines}
    assert all(len(found) == 1 for found in workers.values())
    assert workers["job1"] == workers["job2"]
    names = [name for name, _, _ in lines]
    assert "job1" in names[:2] and set(names[-3:]) & {"a"} and names.index("a") > names.index("b")


def test_a_forked_script_is_told_its_rank_and_fails_as_itself(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint(os.environ['RANK'], os.environ['ASKED'], *sys.argv[1:], flush=True)\n")
    done = forked.run(script, "one", ranks=2, ASKED="so")
    assert done.returncode == 0 and sorted(done.stdout.splitlines()) == ["0 so one", "1 so one"]
    script.write_text("import os\nassert os.environ['RANK'] == '0', 'on purpose'\nimport time\ntime.sleep(100)\n")
    done = forked.run(script, ranks=2)  # the rank that waits for the other is ended
    assert done.returncode == 1 and "AssertionError: on purpose" in done.stderr
