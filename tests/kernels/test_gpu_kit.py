"""The kit for a machine with a GPU, on one without: what it writes and when, and that no stage can end the others."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import gpu_kit
import pytest
from gpu_table import table

ROOT = Path(__file__).parents[2]
H100 = {"status": "ok", "rows": [], "card": "NVIDIA H100 80GB HBM3", "versions": {"torch": "2.11.0"}, "properties": {}}


def kit(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_kit.py"), *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A run where torch and triton are all there is."""
    folder = tmp_path_factory.mktemp("bare")
    lacking = ("pytest", "verl", "vllm", "ray", "transformers", "liger_kernel", "cut_cross_entropy")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({lacking}))\n")
    return kit("--out", str(folder / "out"), path=str(folder)), folder / "out"


def test_without_a_gpu_every_stage_runs_and_claims_no_time(bare):
    done, folder = bare
    assert "NO GPU: torch finds no GPU here" in done.stdout, done.stdout + done.stderr
    (path,) = folder.glob("*.json")
    result = json.loads(path.read_text())
    assert (
        result["mode"] == "interpreted"
        and result["machine"]["card"] is None
        and "torch" in result["machine"]["versions"]
    )
    stages = result["stages"]
    assert list(stages) == list(gpu_kit.SECONDS)
    for name, stage in stages.items():
        assert stage["status"] == ("cut" if name == "tests" else "ok"), done.stdout
        assert not any(key in row for row in stage["rows"] for key in ("ms", "tflops", "of_floor", "gb_per_s"))
    assert "No time was measured" in path.with_suffix(".md").read_text()


def test_what_a_run_finds_out(bare):
    stages = json.loads(next(bare[1].glob("*.json")).read_text())["stages"]
    assert "python3 -m pytest -m gpu tests/kernels/cases" in stages["tests"]["note"]
    steps = {(row["row step"], row["dlogits in"]): row for row in stages["accuracy"]["rows"]}
    assert all(steps[name, dtype]["within bounds"] for name in ("triton", "torch") for dtype in ("float32", "bfloat16"))
    errors = {row["peer"]: row.get("dWeight") for row in stages["times"]["rows"]}
    assert errors["wavalign triton"] < errors["naive"] and errors["wavalign torch"] < errors["naive"]
    assert {row["what"] for row in stages["sweep"]["rows"]} >= {"row step", "part: logits", "wavalign_loss, chunk of"}
    assert not [row for row in stages["sweep"]["rows"] if "error" in row]
    losses = {row["head"]: row.get("loss") for row in stages["update"]["rows"]}
    assert losses["wavalign_loss"] == pytest.approx(losses["the model's own"], rel=1e-2)
    assert "note" not in stages["update"], "FSDP2 works"


@pytest.mark.slow
def test_its_tests_stage_runs_tests(tmp_path):
    done = kit("--out", str(tmp_path), "--stages", "tests")
    stage = json.loads(next(tmp_path.glob("*.json")).read_text())["stages"]["tests"]
    assert done.returncode == 0 and stage["counts"]["passed"] == stage["collected"] > 5, done.stdout


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, answers: dict[str, Any], *arguments: str) -> int:
    """The kit in this process, with stages that answer at once."""

    def stage(name: str, seconds: float, interpreted: bool, without: list[str]) -> dict[str, Any]:
        answer = answers.get(name, {"status": "ok", "rows": [], "seconds": 1.0, "allowed_s": seconds})
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(gpu_kit, "run_stage", stage)
    monkeypatch.setattr(gpu_kit, "ROOT", folder)
    monkeypatch.setattr(gpu_kit, "clocks", lambda: {"clocks.sm": "1980 MHz"})
    monkeypatch.setattr(sys, "argv", ["gpu_kit.py", *arguments])
    return gpu_kit.main()


def test_nothing_is_written_without_a_gpu_unless_asked(monkeypatch, tmp_path):
    nothing = {"machine": {"status": "ok", "rows": [], "card": None}}
    assert run(monkeypatch, tmp_path, nothing) == 0
    assert not list(tmp_path.iterdir())
    run(monkeypatch, tmp_path, nothing, "--out", str(tmp_path / "asked"))
    assert len(list((tmp_path / "asked").iterdir())) == 2


def test_with_a_gpu_each_run_has_a_dated_file_of_its_own(monkeypatch, tmp_path):
    failed = {"status": "failed", "seconds": 3.0, "allowed_s": 9.0, "error": "CUDA error: 700", "rows": []}
    for _ in range(2):
        assert run(monkeypatch, tmp_path, {"machine": H100, "times": failed}) == 1
    folder = tmp_path / "benchmarks" / "results" / "gpu"
    day = json.loads(next(folder.glob("*.json")).read_text())["date"]
    names = [f"{day}-nvidia-h100-80gb-hbm3{n}.{kind}" for n in ("", "-2") for kind in ("json", "md")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    result = json.loads((folder / names[0]).read_text())
    assert result["stages"]["times"]["error"] == "CUDA error: 700"
    assert result["stages"]["update"]["status"] == "ok", "a failed stage does not end the others"
    assert result["clocks"] == {"clocks.sm": "1980 MHz"} and result["machine"]["versions"] == {"torch": "2.11.0"}
    assert "CUDA error: 700" in (folder / names[1]).read_text()


def test_the_file_is_there_after_each_stage(monkeypatch, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path, {"machine": H100, "times_4096": KeyboardInterrupt()})
    result = json.loads(next(tmp_path.rglob("*.json")).read_text())
    assert list(result["stages"]) == ["tests", "accuracy", "times"]


def test_neither_git_nor_nvidia_smi_is_needed(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_kit.commit() is None and gpu_kit.clocks() is None


def test_all_stages_fit_into_nine_minutes():
    assert max(gpu_kit.TOTAL.values()) < 540
    assert sum(gpu_kit.SECONDS.values()) <= gpu_kit.TOTAL["gpu"]


@pytest.fixture
def stage_that(monkeypatch, tmp_path):
    """Puts a script in the place of the stages."""

    def put(code: str) -> None:
        (tmp_path / "benchmarks").mkdir(exist_ok=True)
        report = "import json, sys, pathlib, time\nreport = pathlib.Path(sys.argv[sys.argv.index('--report') + 1])\n"
        (tmp_path / "benchmarks" / "gpu_stages.py").write_text(report + textwrap.dedent(code))

    monkeypatch.setattr(gpu_kit, "ROOT", tmp_path)
    return put


def test_a_stage_that_hangs_is_ended_and_what_it_knew_is_kept(stage_that):
    stage_that("report.write_text(json.dumps({'rows': [{'a': 1}]})); time.sleep(60)")
    begin = time.monotonic()
    found = gpu_kit.run_stage("times", 3, False, [])
    assert time.monotonic() - begin < 20
    assert found["status"] == "cut" and found["rows"] == [{"a": 1}]


def test_a_stage_that_dies_says_why(stage_that, tmp_path):
    stage_that(f"raise RuntimeError('no kernel image in {tmp_path}/x')")
    found = gpu_kit.run_stage("times", 30, False, [])
    assert found["status"] == "failed" and "no kernel image in ./x" in found["error"] and found["rows"] == []


def test_a_peer_that_kills_the_context_is_left_out_of_a_second_try(stage_that):
    stage_that("""
        without = sys.argv[sys.argv.index("--without") + 1:]
        if "bad" not in without:
            report.write_text(json.dumps({"rows": [], "dead": "bad"}))
            sys.exit(1)
        report.write_text(json.dumps({"rows": [{"peer": "good"}]}))
    """)
    found = gpu_kit.run_stage_again("times", 60, False)
    assert found["status"] == "ok" and found["left_out"] == ["bad"] and found["rows"] == [{"peer": "good"}]


def test_the_table_has_a_row_for_each_and_leaves_out_what_nobody_has():
    rows = [{"peer": "floor", "ms": 31.2345678, "note": None}, {"peer": "naive", "note": "out | of\nmemory", "x": None}]
    stage = {"status": "ok", "seconds": 9.1, "allowed_s": 95, "rows": rows, "case": "T 8192"}
    result = {"date": "2026-01-01", "mode": "gpu", "commit": "abc", "machine": H100, "clocks": None}
    text = table(result | {"stages": {"times": stage}})
    assert (
        "| peer | ms | note |" in text and "| floor | 31.235 |  |" in text and "| naive |  | out / of memory |" in text
    )


@pytest.mark.parametrize("venv, python", [("no-such-folder", "python3"), (".venv", ".venv/bin/python")])
def test_make_gpu_installs_nothing(venv, python):
    if venv == ".venv" and not (ROOT / python).exists():
        pytest.skip("there is no .venv here")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # where make runs this
    plain["ARGS"] = "--durations=9"  # as `make test ARGS=--durations=9` gives it to its tests
    command = ["make", "-n", "gpu", f"VENV={venv}"]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True)
    assert done.stdout.split() == [python, "benchmarks/gpu_kit.py"]
