"""Whether this start can go on from what is in the run's folder, and reach the Ray that it names."""

import os
import socket
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavalign_ext.checkpoints import record, whole
from wavalign_ext.config import ConfigError

REACH_S = 5.0


def stop_if_finished(config: DictConfig) -> None:
    """End well, before Ray starts, when the run would resume after its last step."""
    trainer = config.trainer
    asked = trainer.total_training_steps
    if trainer.val_only or trainer.resume_mode != "auto" or not isinstance(asked, int):
        return
    latest = _or_refusal(whole.latest_step, Path(trainer.default_local_dir))
    if latest is None or latest < asked:
        return
    print(
        f"wavalign: {trainer.default_local_dir} has {latest} steps and trainer.total_training_steps={asked} asks for "
        f"no more. To go on, raise it above {latest}; to start anew, give trainer.experiment_name=NAME",
        flush=True,
    )
    raise SystemExit(0)


def check_resume(config: DictConfig) -> None:
    """Compare the checkpoint that the run would go on from with the run. Raises :class:`ConfigError`."""
    trainer = config.trainer
    if trainer.resume_mode == "auto":
        run = Path(trainer.default_local_dir)
        step, _ = _or_refusal(whole.newest_whole, run)
        folder = None if step is None else whole.step_folder(run, step)
    elif trainer.resume_mode == "resume_path" and trainer.resume_from_path:
        folder = Path(trainer.resume_from_path)
        if not folder.is_dir():
            raise ConfigError(f"trainer.resume_from_path={str(folder)!r} is not a folder: give a global_step_N")
        if wrong := whole.problem(folder):
            raise ConfigError(f"trainer.resume_from_path={str(folder)!r}: {wrong}. Resume from another step")
    else:
        return
    state = _or_refusal(whole.read_state, folder) if folder else None
    if not state or "run" not in state:
        return
    for line in record.compare(state["run"], record.record(config), str(folder)):
        print(f"wavalign: changed since {folder}: {line}", flush=True)


def _or_refusal(look: Any, folder: Path) -> Any:
    try:
        return look(folder)
    except whole.CheckpointError as error:
        raise ConfigError(str(error)) from error


def check_ray_address(config: DictConfig) -> None:
    """Refuse an address where no Ray listens, which Ray itself waits for. Raises :class:`ConfigError`."""
    given = OmegaConf.select(config, "ray_kwargs.ray_init.address")
    name = "ray_kwargs.ray_init.address" if given else "RAY_ADDRESS"
    address = str(given or os.environ.get("RAY_ADDRESS", "")).removeprefix("ray://")
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():  # auto, local, or none
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        why = "start Ray there (ray start --head), or take the setting away: a run starts a Ray of its own"
        raise ConfigError(f"{name}={address}: nothing answers there ({error}): {why}") from error
