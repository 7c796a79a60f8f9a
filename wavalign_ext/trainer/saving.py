"""When a run's checkpoints are saved, kept and taken up; what they are on disk is ``checkpoints/whole.py``.

verl writes into the folder that a resume would find, counts only what this start has saved when it removes old ones,
and leaves all but ``actor/`` of these. All of that is done here instead; the files themselves are verl's.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wavalign_ext.checkpoints import whole


class Saving:
    """The checkpoints of one run. ``most`` is how many are kept; None keeps all."""

    def __init__(self, trainer_config: Any) -> None:
        self.run = Path(trainer_config.default_local_dir).absolute()
        one = trainer_config.get("remove_previous_ckpt_in_save", False)
        self.most: int | None = 1 if one else trainer_config.get("max_actor_ckpt_to_keep", None)
        self.last: int | None = None  # the step saved last, by this start

    def save(self, trainer: Any, step: int, data_state: Any, state: dict[str, Any]) -> None:
        """Write step ``step`` aside, then give it its name and name it the latest."""
        if self.most:  # room first, as verl does it; one always stays
            on_every_node(whole.rotate, self.run, max(self.most - 1, 1), self.last)
        folder = whole.aside(self.run, step)
        try:
            trainer.actor_rollout_wg.save_checkpoint(str(folder / "actor"), None, step, max_ckpt_to_keep=None)
            torch.save(data_state, folder / "data.pt")
            whole.write_state(folder, state)
            on_every_node(whole.publish, self.run, step)
        except BaseException:
            on_every_node(whole.discard_unfinished, self.run)
            raise
        whole.set_latest(self.run, step)
        self.last = step
        final = str(whole.step_folder(self.run, step))
        trainer.checkpoint_callback.on_save(trainer=trainer, global_step=step, checkpoint_dir=final, async_save=False)

    def confirm(self) -> None:
        """The step after the last save was healthy, so what was saved is good: older ones may go."""
        if self.most and self.last is not None:
            on_every_node(whole.rotate, self.run, self.most)

    def doubt(self, first_unhealthy: int) -> int | None:
        """The step to go on from, when ``first_unhealthy`` is where it went wrong.

        The update of the step before made it so, and its own numbers could not tell: a checkpoint of that step is no
        longer the latest, if there is an older one.
        """
        latest = whole.latest_step(self.run)
        if latest is None or latest < first_unhealthy - 1:
            return latest
        older = [step for step in whole.saved_steps(self.run) if step < first_unhealthy - 1]
        if not older:
            return latest
        whole.set_latest(self.run, older[-1])
        return older[-1]

    def to_resume(self, mode: str, path: str | None) -> str | None:
        """The folder to go on from, by verl's ``resume_mode``. Raises :class:`whole.CheckpointError`."""
        whole.discard_unfinished(self.run)
        if mode == "disable":
            return None
        if mode == "auto":
            step, lines = whole.newest_whole(self.run)
            for line in lines:
                print(f"wavalign: {line}; going on from step {step}", flush=True)
            return None if step is None else str(whole.step_folder(self.run, step))
        folder = Path(path or "").absolute()
        if wrong := whole.problem(folder):
            raise whole.CheckpointError(f"trainer.resume_from_path={path}: {wrong}. Resume from another step")
        return str(folder)


def on_every_node(work: Callable[..., Any], *args: Any) -> None:
    """Call ``work`` here and on the other nodes, whose ranks may write to disks of their own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    work(*args)
    if not ray.is_initialized():
        return
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    task = ray.remote(num_cpus=0)(work)
    ray.get(
        [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote(*args) for n in others]
    )
