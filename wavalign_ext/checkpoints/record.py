"""What a run is, as its checkpoints say it, and whether a start that would go on from one is the same run.

Without this, a changed reward scale goes on with the λ of the old one, changed data with a place in the old file, and a
changed layout with weights that mean other tokens by the same ids.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wavalign_ext.config import ConfigError
from wavalign_ext.schema import listed, shown

EDGE = 2**20  # bytes of a file's beginning and end that its fingerprint reads
# What the weights, λ and the place in the data depend on. Another value of these is another run.
FIXED = ("layout", "codec", "input_codec", "boundary_modality", "reward.scale", "model", "weights", "data")
# Ours that change nothing of what is learnt.
FREE = ("watchdog", "health", "audio_dump", "update", "audio_root")
# Of verl's: what else makes a recipe.
OTHERS = {
    "rollout.n": "actor_rollout_ref.rollout.n",
    "rollout.temperature": "actor_rollout_ref.rollout.temperature",
    "data.train_batch_size": "data.train_batch_size",
    "data.seed": "data.seed",
    "actor.optim.lr": "actor_rollout_ref.actor.optim.lr",
    "actor.ppo_mini_batch_size": "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor.policy_loss.loss_mode": "actor_rollout_ref.actor.policy_loss.loss_mode",
}


def record(config: DictConfig) -> dict[str, Any]:
    """The run in names and plain values, for ``wavalign.json``."""
    node: Any = OmegaConf.to_container(config.wavalign, resolve=True)
    given = {name: value for name, value in node.items() if name not in FREE and name not in FIXED}
    found = {"layout": _layout(node["layout"]), "codec": _without_paths(node["codec"])}
    found |= {"input_codec": _without_paths(node.get("input_codec") or {})}
    found |= {
        "boundary_modality": node.get("boundary_modality"),
        "model": model_print(config.actor_rollout_ref.model.path),
        "weights": weights_print(config.actor_rollout_ref.model.path),
    }
    files = config.data.train_files
    found["data"] = data_print([files] if isinstance(files, str) else list(files))
    found |= _flat(given)
    found |= {name: OmegaConf.select(config, key) for name, key in OTHERS.items()}
    return json.loads(json.dumps(found, default=str))  # as it comes back from a checkpoint


def compare(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> list[str]:
    """What has changed since a checkpoint and may, as ``NAME: OLD → NEW``.

    Raises:
        ConfigError: something of :data:`FIXED` has changed.
    """
    changed = [name for name in now if name in before and before[name] != now[name]]
    changed += [name for name in before if name not in now]
    other = [name for name in changed if name in FIXED]
    if other:
        first, rest = other[0], listed(other[1:])
        how = _difference(before.get(first), now.get(first))
        raise ConfigError(
            f"{where} was made with another {first}{rest}: {how}. Set it back, or begin a run of its own with "
            "trainer.experiment_name=NAME; to begin that from these weights, wavalign export them first and give the "
            "folder as actor_rollout_ref.model.path"
        )
    return [f"{name}: {shown(before.get(name))} → {shown(now.get(name))}" for name in changed]


def model_print(path: str) -> str:
    """A fingerprint of a model's folder, which may have moved: its configuration, names and sizes of its weights."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        return str(path)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in _weights(folder):
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def weights_print(path: str) -> str:
    """A fingerprint of a model's weights: two models of one shape differ in nothing else."""
    files = _weights(Path(path))
    return hashlib.sha256(b"".join(map(_edges, files))).hexdigest()[:16] if files else str(path)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))


def data_print(files: list[str]) -> list[str]:
    """A fingerprint of each data file, whatever its place: size, beginning and end."""
    found = []
    for name in files:
        path = Path(name)
        if not path.is_file():
            found.append(str(name))
            continue
        found.append(hashlib.sha256(_edges(path)).hexdigest()[:16])
    return found


def _edges(path: Path) -> bytes:
    """Size, beginning and end."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(EDGE)
        file.seek(max(0, size - EDGE))
        return str(size).encode() + first + file.read(EDGE)


def _layout(node: Any) -> Any:
    from dataclasses import asdict, is_dataclass

    from wavalign_ext.speech.layout import load_layout

    layout = load_layout(node)
    return asdict(layout) if is_dataclass(layout) and not isinstance(layout, type) else str(layout)


def _without_paths(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if not isinstance(value, str) or "/" not in value}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A mapping's values by dotted name."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    inner = [_flat(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in node.items()]
    return {name: value for values in inner for name, value in values.items()}


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return ", ".join(f"{name} {shown(before.get(name))} → {shown(now.get(name))}" for name in names[:3])
    return f"{shown(before)} → {shown(now)}"
