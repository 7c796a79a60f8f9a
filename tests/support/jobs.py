"""A job of stock verl in a process of its own, under a time limit, with nothing left behind.

pytest has this folder on its path: ``from jobs import SMALL, Job``.
"""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
SIZE = ["data.train_batch_size=8", "data.val_max_samples=8"]
SMALL = ["+recipe=wavalign", *SIZE]


class Job:
    """A job, started at once: its folder, its output, its metrics by step, and the most memory it held."""

    def __init__(self, folder: Path, *overrides: str, limit_s: float = 600, **environment: str) -> None:
        self.folder, self.limit_s = folder, limit_s
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.metrics_file = folder.with_suffix(".log"), folder / "metrics.jsonl"
        command = [sys.executable, "-m", "verl.trainer.main_ppo", f"trainer.default_local_dir={folder}"]
        command += ["trainer.logger=[console,tensorboard,file]", *overrides]
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        given = dict(PYTHONPATH=path, VERL_PLATFORM="cpu", VERL_FILE_LOGGER_PATH=str(self.metrics_file), **environment)
        self.began = time.monotonic()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, env=os.environ | given, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> "Job":
        """Raises AssertionError, after it has killed the job, when that takes longer than the limit."""
        self.peak_gb, self.titles = 0.0, set[str]()
        while self.process.poll() is None:
            if time.monotonic() - self.began > self.limit_s:
                self.kill()
                raise AssertionError(f"the job did not end in {self.limit_s} s: {self.output[-4000:]}")
            self.peak_gb = max(self.peak_gb, _memory_gb(self.process.pid))
            self.titles |= _titles(self.process.pid)
            time.sleep(2)
        self.wall_s = time.monotonic() - self.began
        return self

    def succeed(self) -> "Job":
        self.wait()
        assert self.process.returncode == 0, self.output[-6000:]
        return self

    def kill(self) -> None:
        """This process and those that it started."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
            self.process.wait()

    def left_behind(self, patience_s: float = 20) -> list[str]:
        """Processes of this job, known by a variable that they inherit, which still live after ``patience_s``.

        Ray's workers end a moment after the driver.
        """
        for _ in range(int(patience_s)):
            if not (left := self._living()):
                return []
            time.sleep(1)
        return left

    def _living(self) -> list[str]:
        found = psutil.process_iter(["name", "environ", "status"])
        mine = [
            p.info for p in found if (p.info["environ"] or {}).get("VERL_FILE_LOGGER_PATH") == str(self.metrics_file)
        ]
        return [process["name"] for process in mine if process["status"] != psutil.STATUS_ZOMBIE]

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def metrics(self) -> dict[int, dict[str, Any]]:
        lines = map(json.loads, self.metrics_file.read_text().splitlines())
        return {line["step"]: line["data"] for line in lines}

    def rollouts(self, step: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]


def resume_from(checkpoint: Path) -> list[str]:
    """Overrides of a job that goes on from a folder global_step_N of another run."""
    return [f"trainer.resume_from_path={checkpoint}", "trainer.resume_mode=resume_path", "trainer.save_freq=-1"]


def assert_same_step(resumed: Job, whole: Job, step: int) -> None:
    """``step``, the resumed run's only one, is that of the run that did not stop: its answers, λ and loss."""
    assert sorted(resumed.metrics) == [step]
    answers = [sorted(row["speech_codes"] + row["text"] for row in run.rollouts(step)) for run in (resumed, whole)]
    assert answers[0] == answers[1]
    after, before = resumed.metrics[step], whole.metrics[step]
    assert math.isclose(after["wavalign/lambda"], before["wavalign/lambda"], rel_tol=1e-9)
    # The policy's part is a sum of terms that cancel, in the order in which the rollouts came: fp32 leaves 1e-7 of it.
    assert math.isclose(after["actor/total_loss"], before["actor/total_loss"], rel_tol=1e-6, abs_tol=1e-7)


def _titles(pid: int) -> set[str]:
    """Of its children."""
    found = set()
    for process in psutil.Process(pid).children(recursive=True):
        try:
            found.add((process.cmdline() or [""])[0].rpartition("/")[2])
        except psutil.Error:
            continue
    return found


def _memory_gb(pid: int) -> float:
    """Private memory of a process and its children, and their shares of what is shared."""
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:  # one of them has just ended
        pass
    return total / 2**30
