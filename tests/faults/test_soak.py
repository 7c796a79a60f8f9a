"""A long run with a fault every few steps: its data and λ are those of an undisturbed one, and its memory is flat.

300 steps with a fault every 20 take hours on 2 cores: ``WAVALIGN_SOAK=STEPS,EVERY`` makes it shorter or longer.
"""

import itertools
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import Victim

from wavalign_ext.checkpoints import whole

pytestmark = [pytest.mark.faults, pytest.mark.slow]
STEPS, EVERY = (int(number) for number in os.environ.get("WAVALIGN_SOAK", "300,20").split(","))
SETTLED, FLAT = 50, 0.05  # from this step on, memory stays within this share
# What happens, in turn: a signal to a process of this title, or to the driver.
TURNS = [
    ("VLLM::EngineCore", signal.SIGKILL),
    ("driver", signal.SIGTERM),
    ("ray::WorkerDict", signal.SIGKILL),
    ("driver", signal.SIGKILL),
    ("ray::TransferQueueController", signal.SIGKILL),
    ("driver", signal.SIGINT),
    ("ray::RewardLoopWorker", signal.SIGKILL),
]


def started(folder: Path, number: int = 0) -> Victim:
    metrics = folder.with_suffix(f".{number:03}.metrics.jsonl")  # verl begins the file anew with each start
    overrides = ["trainer.logger=[console,file]", f"trainer.total_training_steps={STEPS}", "trainer.save_freq=2"]
    return Victim(folder, *overrides, VERL_FILE_LOGGER_PATH=str(metrics))


def memory(victim: Victim) -> dict[str, float]:
    """Private memory of each kind of process, and of its shared memory, in MB."""
    found: dict[str, float] = {}
    for child in victim.children.values():
        try:
            title = (child.cmdline() or ["?"])[0].rpartition("/")[2].split(".")[0]
            if title.startswith(("ray::", "VLLM::")) and "IDLE" not in title:
                found[title] = found.get(title, 0.0) + child.memory_full_info().uss / 2**20
        except psutil.Error:
            continue
    segments = [Path(name) for name in victim.segments if Path(name).exists()]
    return found | {"/dev/shm": sum(path.stat().st_blocks * 512 for path in segments) / 2**20}


def metrics(folder: Path) -> dict[int, dict[str, Any]]:
    """By step; a step that was made again counts as it was made last."""
    files = sorted(folder.parent.glob(f"{folder.name}.*.metrics.jsonl"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return {line["step"]: line["data"] for line in map(json.loads, lines)}


def undisturbed(folder: Path) -> dict[int, dict[str, float]]:
    """One run to the end; memory by step."""
    victim, seen = started(folder), {}
    for step in range(EVERY, STEPS, EVERY):
        victim.wait_for(rf"step:{step} - ", limit_s=60 * STEPS)
        seen[step] = memory(victim)
    assert victim.wait(60 * STEPS) == 0, victim.output[-3000:]
    assert victim.left() == []
    victim.forget()
    return seen


def disturbed(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Runs to the end in spite of ``TURNS``; memory by step of each start."""
    turns, step = itertools.cycle(TURNS), 0
    while step < STEPS:
        victim, (title, number) = started(folder, step), next(turns)
        step += EVERY
        if step >= STEPS:
            victim.wait_for(rf"step:{STEPS - 1} - ", limit_s=60 * STEPS)
            yield STEPS, memory(victim)
            assert victim.wait(600) == 0, victim.output[-3000:]
        else:
            victim.wait_for(rf"step:{step} - ", limit_s=60 * STEPS)
            yield step, memory(victim)
            if title == "driver":
                victim.process.send_signal(number)
            else:
                victim.one(title).send_signal(number)
            assert victim.wait(180) != 0
        left = victim.left()
        victim.forget()
        if (title, number) != ("driver", signal.SIGKILL) or step >= STEPS:  # else the next start clears away
            assert left == []


def compare(calm: Path, hurt: Path) -> None:
    """λ and data of every step are equal; a step that was saved and then hurt before it was logged may have none."""
    one, other = metrics(calm), metrics(hurt)
    logs = "".join(path.read_text(errors="replace") for path in hurt.parent.glob(f"{hurt.name}.*.log"))
    resumed = {int(step) for step in re.findall(r"resumed step (\d+) ", logs)}
    assert sorted(one) == list(range(1, STEPS + 1))
    assert other.keys() <= one.keys() and one.keys() - other.keys() <= resumed
    for step in other:
        assert other[step]["wavalign/lambda"] == pytest.approx(one[step]["wavalign/lambda"], rel=1e-6), step
        rows = [(folder / "rollouts" / f"{step}.jsonl").read_text().splitlines() for folder in (calm, hurt)]
        asked = [sorted(json.loads(row)["question_audio"] for row in some) for some in rows]
        assert asked[0] == asked[1], step
    assert whole.newest_whole(hurt) == (STEPS, [])


def is_flat(seen: dict[int, dict[str, float]]) -> None:
    """Memory by step and kind of process, in MB, once it has settled."""
    late = {step: found for step, found in seen.items() if step >= SETTLED}
    for kind in {kind for found in late.values() for kind in found}:
        sizes = [found[kind] for found in late.values() if kind in found]
        assert max(sizes) <= (1 + FLAT) * min(sizes) + 5, (kind, sizes)  # 5 MB: what an allocator keeps


def test_faults_leave_no_trace_in_what_is_learnt(pocket: Path, tmp_path: Path) -> None:
    calm, hurt = undisturbed(tmp_path / "calm"), dict(disturbed(tmp_path / "hurt"))
    print(f"SOAK {json.dumps([calm, hurt])}")
    compare(tmp_path / "calm", tmp_path / "hurt")
    is_flat(calm), is_flat(hurt)
