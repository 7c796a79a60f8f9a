"""OmegaConf resolvers that the recipes use."""

import functools
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def register() -> None:
    """Register the resolvers.

    ``${wavalign.pocket:PATH}`` is a path inside the embedded default's asset folder.
    ``${wavalign.pocket_parallel:PATH}`` is one inside the folder of the embedded two-stream model.
    ``${wavalign.pocket_ears:PATH}`` is one inside the folder of the embedded model that hears.
    ``${wavalign.gpu_platform:}`` is verl's name for the accelerators of a run on GPUs.
    ``${wavalign.when:CONDITION,VALUE}`` is the value, a list or mapping, or null when the condition is false.
    """
    OmegaConf.register_new_resolver("wavalign.pocket", _pocket, replace=True)
    OmegaConf.register_new_resolver("wavalign.pocket_parallel", _pocket_parallel, replace=True)
    OmegaConf.register_new_resolver("wavalign.pocket_ears", _pocket_ears, replace=True)
    OmegaConf.register_new_resolver("wavalign.gpu_platform", _gpu_platform, replace=True)
    OmegaConf.register_new_resolver("wavalign.when", _when, replace=True)


def _pocket(inside: str) -> str:
    return str(_pocket_dir(os.environ.get("WAVALIGN_CACHE")) / inside)


@functools.cache
def _pocket_dir(cache: str | None) -> Path:
    """Once a process and cache: a recipe asks for it twenty times, and it hashes sources."""
    from wavalign_ext.pocket import pocket_dir

    return pocket_dir()


def _pocket_parallel(inside: str) -> str:
    from wavalign_ext.parallel.pocket import folder

    return str(folder() / inside)


def _pocket_ears(inside: str) -> str:
    from wavalign_ext.models.ears.pocket import folder

    return str(folder() / inside)


def _gpu_platform() -> str:
    from wavalign_ext.integration.hardware import gpu_platform

    return gpu_platform()


def _when(condition: bool, value: list | dict) -> Any:
    return OmegaConf.create(value) if condition else None  # a node: OmegaConf.resolve cannot store a plain list
