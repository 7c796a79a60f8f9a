"""A job of stock verl in a process of its own, under a time limit, with nothing left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent


class Job:
    """A job that has ended: its return code, its output, its metrics by step, and its folder."""

    def __init__(self, folder: Path, *overrides: str, limit_s: float = 600, **environment: str) -> None:
        self.folder, self.limit_s = folder, limit_s
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.metrics_file = folder.with_suffix(".log"), folder / "metrics.jsonl"
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
        command += [f"trainer.default_local_dir={folder}", "trainer.logger=[console,file]"]
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        given = dict(PYTHONPATH=path, VERL_PLATFORM="cpu", VERL_FILE_LOGGER_PATH=str(self.metrics_file), **environment)
        self.began = time.monotonic()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, env=os.environ | given, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> "Job":
        """Raises AssertionError, after it has killed the job, when that takes longer than the limit."""
        try:
            self.process.wait(self.limit_s - (time.monotonic() - self.began))
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the job did not end in {self.limit_s} s: {self.output[-4000:]}") from None
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

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def metrics(self) -> dict[int, dict[str, Any]]:
        lines = map(json.loads, self.metrics_file.read_text().splitlines())
        return {line["step"]: line["data"] for line in lines}

    def rollouts(self, step: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]
