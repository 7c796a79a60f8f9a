"""The faults: what is done to a job of four steps that saves each, and how it must end."""

import json
import os
import signal
from pathlib import Path

from harness import Fault, Victim, driver, killed, stopped

from wavalign_ext.checkpoints import whole

KILLED_DRIVER = "killed driver, started again"
GO_ON = "start it again to go on from its last checkpoint"
STEP_2 = r"step:1 - "  # the line of step 1: step 2 is sampling
UP = r"ray init kwargs"
MODEL_UP = r"WorkerDict pid=\d+"
ENGINE = "VLLM::EngineCore"

DEAD = [
    # what is killed in step 2, what the last line names
    ("engine", ENGINE, "rollout engine"),
    ("server", "ray::vLLMHttpServer", "rollout engine"),
    ("rank", "ray::WorkerDict", "training worker"),
    ("reward", "ray::RewardLoopWorker", "reward worker"),
    ("loop", "ray::HearingWorker", "agent loop worker"),
    ("balancer", "ray::GlobalRequestLoadBalancer", "load balancer"),
    ("queue", "ray::TransferQueueController", "TransferQueue's controller"),
    ("storage", "ray::SimpleStorageUnit", "storage unit"),
    ("runner", "ray::TaskRunner", "task ?runner|TaskRunner|actor died"),
    ("raylet", "raylet", "Ray's node process|Ray says"),
    ("head", "gcs_server", "Ray's head process|Ray says"),
]
LONG = ("trainer.total_training_steps=1000",)  # not over before the fault, however slow this machine
FAILING = ("actor_rollout_ref.rollout.agent.default_agent_loop=failing",)
FAILING += (f"actor_rollout_ref.rollout.agent.agent_loop_config_path={Path(__file__).with_name('failing_loop.yaml')}",)
NOWHERE = {"RAY_ADDRESS": "127.0.0.1:9"}
PARTS = {"VERL_USE_EXTERNAL_MODULES": "fault_parts"}
STOPPED = [("rank", "ray::WorkerDict", "training worker"), ("engine", ENGINE, "rollout engine")]
STOPPED += [("queue", "ray::TransferQueueController", "TransferQueue's controller")]
STOPPED += [("storage", "ray::SimpleStorageUnit", "storage unit"), ("runner", "ray::TaskRunner", "task runner")]
STOPPED += [("reward", "ray::RewardLoopWorker", "reward worker"), ("head", "gcs_server", "Ray's head process")]


def cut(path: str, keep: int) -> object:
    def prepare(run: Path) -> None:
        os.truncate(run / path, keep)

    return prepare


def gone(path: str) -> object:
    return lambda run: (run / path).unlink()


def in_the_way(name: str) -> object:
    """A file where the run wants a folder: the disk refuses whatever goes there."""

    def prepare(run: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("")

    return prepare


def half_saved(run: Path) -> None:
    """As a driver that was killed while it saved step 4 leaves it."""
    (run / whole.ASIDE / "global_step_4" / "actor").mkdir(parents=True)
    (run / ".lock").write_text(json.dumps({"pid": 1, "shared_memory": []}))


def two_runs(victim: Victim) -> None:
    """A second start in the folder of one that is under way."""
    victim.wait_for(UP)
    other = Victim(victim.folder)
    try:
        assert other.wait(60) == 1
        assert "belongs to a run that is under way (process" in other.lines[-1]
    finally:
        other.forget()


FAULTS = [
    *(
        Fault(f"killed {name}", f"({what}).*{GO_ON}", hurt=killed(title, STEP_2), overrides=LONG, goes_on_from=1)
        for name, title, what in DEAD
    ),
    *(
        Fault(
            f"stopped {name}",
            rf"{what}.*stopped for 6\d s.*{GO_ON}",
            hurt=stopped(title, STEP_2),
            overrides=LONG,
            goes_on_from=1,
        )
        for name, title, what in STOPPED
    ),
    Fault("killed engine at the start", GO_ON, hurt=killed(ENGINE, MODEL_UP), saved=()),
    Fault("killed rank at the start", f"training worker.*{GO_ON}", hurt=killed("ray::WorkerDict", UP), saved=()),
    Fault("killed queue at the start", GO_ON, hurt=killed("ray::TransferQueueController", UP), saved=()),
    Fault("stopped server at the start", f"stopped.*{GO_ON}", hurt=stopped("ray::vLLMHttpServer", UP), saved=()),
    Fault(
        "ctrl-c",
        r"stopped by SIGINT; (step \d+ is saved: start it again|start it again to go on from step)",
        status=130,
        hurt=driver(signal.SIGINT, after=STEP_2),
        overrides=LONG,
        said=("SIGINT: ending the run",),
        goes_on_from=1,
    ),
    Fault(
        "ctrl-c twice",
        f"ended at once by SIGINT: {GO_ON}",
        status=130,
        hurt=driver(signal.SIGINT, signal.SIGINT, after=STEP_2, between_s=0.2),
        overrides=LONG,
        within_s=40,
    ),
    Fault(
        "sigterm, nothing saved yet",
        r"stopped by SIGTERM; step \d+ is saved: start it again to go on from there",
        status=143,
        overrides=(*LONG, "trainer.save_freq=1000"),
        hurt=driver(signal.SIGTERM, after=STEP_2),
    ),
    Fault("sigterm at the start", f"SIGTERM.*{GO_ON}", status=143, hurt=driver(signal.SIGTERM, after=UP), saved=()),
    Fault(
        "diverged",
        r"unhealthy ones in a row .* start again: (it goes on from step 1|there is no checkpoint, so it begins anew)",
        overrides=("actor_rollout_ref.actor.optim.lr=10", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"),
        said=(r"step \d is not healthy \(1 of 3\)",),
        within_s=300,
    ),
    Fault(
        "weights that are not finite",
        r"actor/\w+ is nan.*there is no checkpoint",
        overrides=("trainer.total_training_steps=5", "actor_rollout_ref.model.path={spoilt}"),
        saved=(),
        within_s=300,
    ),
    Fault(
        "a judge that refuses",
        "no answer has a reward.*unhealthy ones in a row",
        overrides=(
            "+wavalign.reward.terms.holistic={weight: 1, type: judge, aspect: semantic, audio: false, model: m, "
            "endpoint: {url: 'http://127.0.0.1:9/v1', retries: 0}}",
            "trainer.total_training_steps=5",
        ),
        saved=(),
        within_s=300,
    ),
    Fault(
        "a term that waits for ever",
        "no answer has a reward.*unhealthy ones in a row",
        environment=PARTS,
        overrides=(
            "+wavalign.reward.terms.waiting={weight: 1}",
            "wavalign.reward.timeout_s=3",
            "wavalign.health.stop_after_steps=2",
        ),
        within_s=300,
        saved=(),
    ),
    Fault(
        "a term that blocks its worker",
        rf"reward worker \d has not answered for 1\d\d s.*{GO_ON}",
        environment=PARTS,
        overrides=("+wavalign.reward.terms.blocking={weight: 1}",),
        within_s=300,
        saved=(),
    ),
    Fault(
        "an answer that fails",
        r"step 1 has [123] of 4 rollouts; missing are",
        overrides=FAILING,
        saved=(),
        within_s=240,
    ),
    Fault(
        "an answer that fails, tolerated",
        "results in",
        status=0,
        overrides=(*FAILING, "wavalign.health.missing_rollouts=0.5", "trainer.total_training_steps=2"),
        said=(r"step 2 has 2 of 4 rollouts; missing are 1 of data row \d+, 1 of data row \d+",),
        saved=(1, 2),
        within_s=240,
    ),
    Fault(
        "dumps that fail",
        "results in",
        status=0,
        prepare=in_the_way("rollouts"),
        said=(r"the dump of step 1 .* failed: ", r"the dump of step 4 .* failed: "),
        saved=(3, 4),
        within_s=300,
    ),
    Fault("checkpoints that fail", r"Error: .*\.unfinished", prepare=in_the_way(whole.ASIDE), saved=(), within_s=240),
    Fault("two runs in a folder", "results in", status=0, hurt=two_runs, saved=(3, 4), within_s=300),
    Fault(
        "ray address to nowhere",
        "RAY_ADDRESS=127.0.0.1:9: nothing answers there",
        environment=NOWHERE,
    ),
    # --- what a resume finds: a run of three steps, of which 2 and 3 are kept
    Fault("resume", "results in", status=0, resumes=True, saved=(3, 4), said=("resumed step 3",), within_s=240),
    Fault(
        "optimiser cut off",
        "results in",
        status=0,
        resumes=True,
        prepare=cut("global_step_3/actor/optim_world_size_1_rank_0.pt", 1000),
        said=(r"global_step_3 is not whole and is not used: .*optim.* has 1000 bytes", "resumed step 2"),
        saved=(3, 4),
        within_s=300,
    ),
    Fault(
        "a save that was killed",
        "results in",
        status=0,
        resumes=True,
        prepare=half_saved,
        said=("resumed step 3",),
        saved=(3, 4),
        within_s=300,
    ),
    Fault(
        "no whole checkpoint",
        "global_step_3 is not whole.*data.pt is missing.*global_step_2 is not whole",
        resumes=True,
        prepare=lambda run: [(run / f"global_step_{step}" / "data.pt").unlink() for step in (2, 3)],
    ),
    Fault(
        "scale changed",
        "another reward.scale: .*→",
        resumes=True,
        overrides=("wavalign.reward.scale=[0,5]",),
    ),
    Fault("data changed", "another data", resumes=True, overrides=("data.train_files=${data.val_files}",)),
    Fault(
        "latest that is no number",
        "latest_checkpointed_iteration.txt='three' is not allowed",
        resumes=True,
        prepare=lambda run: (run / whole.TRACKER).write_text("three"),
    ),
    Fault(
        "latest that is gone",
        "results in",
        status=0,
        resumes=True,
        prepare=gone(whole.TRACKER),
        said=("resumed step 3",),
        saved=(3, 4),
        within_s=300,
    ),
    Fault(
        "n changed",
        "results in",
        status=0,
        resumes=True,
        overrides=("actor_rollout_ref.rollout.n=3",),
        said=("rollout.n: 2 → 3", "resumed step 3"),
        saved=(3, 4),
        within_s=300,
    ),
]
