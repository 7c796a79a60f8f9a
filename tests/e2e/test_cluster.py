"""Two Ray nodes on one machine, two training ranks, two rollout engines: a run, an accident, and its continuation."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from jobs import Job

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SUPPORT = Path(__file__).parents[1] / "support"
DEADLINE_S = 120
# vLLM chooses a free port and listens on it half a minute later, when one of Ray's many processes may have it.
PORT_TAKEN = "DistNetworkError: The server socket has failed to listen"
# What the preset gives to the nodes that verl would start; here they are started before it.
NODE_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Two fresh nodes: their address, and the process that all of theirs descend from."""
    file, log = tmp_path / "address", open(tmp_path / "nodes.log", "w")
    process = subprocess.Popen(
        [sys.executable, str(SUPPORT / "two_nodes.py"), str(file)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=os.environ | NODE_ENVIRONMENT,
    )
    try:
        deadline = time.monotonic() + 120
        while not (file.is_file() and file.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "nodes.log").read_text()[-4000:]
            time.sleep(0.5)
        yield file.read_text(), psutil.Process(process.pid)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in psutil.wait_procs(children, timeout=30)[1]:
            child.kill()
        log.close()


def start(address: str, folder: Path, steps: int) -> Job:
    return Job(
        folder,
        "+recipe=wavalign",
        "trainer.nnodes=2",
        f"+ray_kwargs.ray_init.address='{address}'",
        "ray_kwargs.ray_init.num_cpus=null",
        "ray_kwargs.ray_init.num_gpus=null",
        "data.train_batch_size=4",
        "data.val_max_samples=4",
        f"trainer.total_training_steps={steps}",
        "trainer.save_freq=1",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
        "wavalign.watchdog.poll_interval_s=2",
        # The nodes were started before the job, so its environment does not reach their workers by itself.
        f"+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH={folder}/metrics.jsonl",
        limit_s=600,
    )


def wait_for(job: Job, what: str, limit_s: float = 400) -> None:
    deadline = time.monotonic() + limit_s
    while what not in job.output:
        assert job.process.poll() is None, job.output[-6000:]
        assert time.monotonic() < deadline, f"no {what!r} in {limit_s} s: {job.output[-4000:]}"
        time.sleep(0.5)


def engines(nodes: psutil.Process) -> list[psutil.Process]:
    """vLLM's engine processes on these nodes; Ray's and vLLM's processes name themselves in their command line."""
    return [p for p in nodes.children(recursive=True) if p.cmdline()[:1] == ["VLLM::EngineCore"]]


def test_a_lost_engine_ends_the_run_and_it_can_go_on(
    pocket: Path, cluster: tuple[str, psutil.Process], tmp_path: Path
) -> None:
    (address, nodes), folder = cluster, tmp_path / "run"
    job = start(address, folder, 1000)
    try:
        wait_for(job, "step:2 ")
        assert len(engines(nodes)) == 2
        engines(nodes)[0].kill()
        killed = time.monotonic()
        job.limit_s = killed - job.began + DEADLINE_S
        job.wait()
    finally:
        job.kill()
    print(f"the run ended {time.monotonic() - killed:.0f} s after the engine was killed")
    assert job.process.returncode != 0
    assert "wavalign: the rollout engine" in job.output and "has died" in job.output
    assert "WorkerLost" in job.output and "start it again to go on from its last checkpoint" in job.output
    saved = int((folder / "latest_checkpointed_iteration.txt").read_text())
    assert saved >= 1

    resumed = start(address, folder, saved + 2).wait()
    if PORT_TAKEN in resumed.output:
        resumed = start(address, folder, saved + 2).wait()
    resumed.succeed()
    assert f"wavalign: resumed step {saved}" in resumed.output
    steps = resumed.metrics
    assert max(steps) == saved + 2 and min(step for step in steps if step > saved) == saved + 1
    metrics = steps[saved + 2]
    assert metrics["training/rollout_probs_diff_mean"] < 1e-5
    assert metrics["wavalign/rows_anchor"] == 4 and metrics["actor/grad_norm"] > 0
