"""Everything that is to be known about the kernel on a GPU, in nine minutes, in one file.

    make gpu        (python3 benchmarks/gpu_kit.py: torch and triton are enough, nothing is installed or downloaded)

Stages, each in a process of its own with a time of its own; one that fails is a line of the result and not its end:

    tests       every kernel test with the marker gpu (needs pytest)
    accuracy    both row steps against float64, at the real vocabulary
    times       wavalign_loss and its peers, those that can be imported, at T 8192, 60 % active, H 3584, V 168072
    times_4096  the same at T 4096, V 131072
    sweep       block size and warps of the row kernel, rows of a chunk, the parts of a chunk
    update      FSDP2 updates of Qwen2-7B's geometry, cut to the layers that fit, with ours and other heads

Writes benchmarks/results/gpu/DATE-CARD.json and a table beside it, again after each stage. Without a GPU it says so and
runs the same code on small shapes, the Triton kernel interpreted: no time is measured, and nothing is written but with
--out.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from gpu_table import table

ROOT = Path(__file__).resolve().parents[1]
PATHS = ("kernels", "benchmarks", "tests/kernels/cases")  # what a stage imports, installed or not
SECONDS = {"tests": 150, "accuracy": 40, "times": 95, "times_4096": 65, "sweep": 75, "update": 90}
SMALL_SECONDS = dict.fromkeys(SECONDS, 150)  # all together take half a minute, on a busy machine several
TOTAL = {"gpu": 525, "interpreted": 525}
CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"


def environment(interpreted: bool) -> dict[str, str]:
    """A stage's: this checkout's packages, no model hub, a process group of one."""
    path = [str(ROOT / name) for name in PATHS] + [os.environ.get("PYTHONPATH", "")]
    lone = {"MASTER_ADDR": "127.0.0.1", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    given = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    chosen = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if interpreted else {}
    return given | lone | chosen | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}


def run_stage(name: str, seconds: float, interpreted: bool, without: list[str]) -> dict[str, Any]:
    """What the stage reported, how it ended, and its last words if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        report, errors = Path(folder) / "report.json", Path(folder) / "stderr"
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu_stages.py"), name, "--report", str(report)]
        command += ["--seconds", str(seconds - min(8.0, seconds / 4)), "--without", *without]
        command += ["--small"] if interpreted else []
        begin = time.monotonic()
        with open(errors, "wb") as file:
            child = subprocess.Popen(
                command, cwd=ROOT, env=environment(interpreted), stdout=file, stderr=file, start_new_session=True
            )
            try:
                code: int | None = child.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        found = json.loads(report.read_text()) if report.exists() else {"rows": []}
        last = errors.read_text(errors="replace").strip()[-1500:].replace(str(ROOT), ".")
    status = "ok" if code == 0 else "cut" if code is None else "failed"
    if status == "ok" and found.get("cut"):
        status = "cut"
    ended = {"status": status, "seconds": round(time.monotonic() - begin, 1), "allowed_s": round(seconds)}
    return ended | ({"error": last or f"exit code {code}"} if status == "failed" else {}) | found


def run_stage_again(name: str, seconds: float, interpreted: bool) -> dict[str, Any]:
    """As `run_stage`; without those who left the GPU unusable, if any did and there is time."""
    begin, dead = time.monotonic(), []
    while True:
        found = run_stage(name, seconds - (time.monotonic() - begin), interpreted, dead)
        if "dead" not in found or seconds - (time.monotonic() - begin) < 20:
            return found | ({"left_out": dead} if dead else {})
        dead.append(found["dead"])


def clocks() -> dict[str, str] | None:
    """By nvidia-smi, where it is."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-i", "0", f"--query-gpu={CLOCKS}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")] if done.stdout.strip() else []
    return dict(zip(CLOCKS.split(","), values, strict=True)) if len(values) == len(CLOCKS.split(",")) else None


def commit() -> str | None:
    """What git says, where there is one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def place_for(folder: Path, card: str) -> Path:
    """DATE-CARD.json, numbered where the day has one already."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{date.today()}-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}"
    taken = sum(1 for path in folder.glob(f"{stem}*.json") if re.fullmatch(rf"{stem}(-\d+)?", path.stem))
    return folder / (f"{stem}-{taken + 1}.json" if taken else f"{stem}.json")


def save(result: dict[str, Any], path: Path | None) -> None:
    if path is None:
        return
    for file, text in ((path, json.dumps(result, indent=1, ensure_ascii=False)), (path.with_suffix(".md"), None)):
        fresh = file.with_suffix(file.suffix + ".part")
        fresh.write_text((text or table(result)) + "\n", encoding="utf-8")
        fresh.replace(file)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, help="folder of the result; default with a GPU: benchmarks/results/gpu")
    p.add_argument("--stages", nargs="+", choices=list(SECONDS), default=list(SECONDS), metavar="STAGE")
    options = p.parse_args()
    begin = time.monotonic()
    machine = run_stage("machine", 90, False, [])
    interpreted = machine.get("card") is None
    mode = "interpreted" if interpreted else "gpu"
    card = machine.get("card") or "no GPU"
    print(f"{card}; {machine.get('versions', {})}")
    if interpreted:
        why = "torch finds no GPU here" if machine["status"] == "ok" else f"torch cannot be asked: {machine['error']}"
        print(f"NO GPU: {why}. Small shapes, Triton's kernel interpreted; no time is measured.")
    result: dict[str, Any] = {"kit": 1, "date": str(date.today()), "mode": mode, "commit": commit()}
    result |= {"machine": machine, "clocks": clocks(), "stages": {}}
    folder = options.out or (None if interpreted else ROOT / "benchmarks" / "results" / "gpu")
    path = None if folder is None else place_for(folder, card)
    for name in options.stages:
        left = TOTAL[mode] - (time.monotonic() - begin)
        seconds = min((SMALL_SECONDS if interpreted else SECONDS)[name], left)
        if seconds < 10:
            found: dict[str, Any] = {"status": "no time left", "rows": []}
        else:
            print(f"{name}: at most {seconds:.0f} s", flush=True)
            found = run_stage_again(name, seconds, interpreted)
        result["stages"][name] = found | {"clocks after it": clocks()}
        print(f"{name}: {found['status']} {found.get('error', '')[-400:]}", flush=True)
        save(result, path)
    print(table(result))
    print(f"{time.monotonic() - begin:.0f} s" + ("" if path is None else f"; written: {path} and .md beside it"))
    return 0 if all(found["status"] == "ok" for found in result["stages"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
