"""Which hardware a run uses, decided when its recipe composes; nothing is decided, or set, by an import.

``VERL_PLATFORM`` is verl's own switch: ``nvidia``, ``amd``, ``huawei``, or ``cpu``, which WavAlign adds. A recipe's
``hardware`` preset names the platform for every process of the run, because one without a GPU of its own (the driver on
a head node, the task runner, a reward worker) would otherwise conclude that the whole cluster has none.
"""

import os
from functools import cache


def accelerator_visible() -> bool:
    """Whether torch sees a CUDA/ROCm device or an Ascend NPU in this process."""
    import torch

    npu = getattr(torch, "npu", None)
    return torch.cuda.is_available() or bool(npu and npu.is_available())


@cache
def preset() -> str:
    """Name of the hardware preset for this machine: ``cpu`` or ``gpu``. Printed once."""
    if asked := _asked():
        chosen, why = "cpu" if asked == "cpu" else "gpu", f"VERL_PLATFORM={asked}"
    elif accelerator_visible():
        chosen, why = "gpu", "an accelerator is visible"
    else:
        chosen, why = "cpu", "no accelerator is visible"
    print(f"wavalign: hardware preset '{chosen}' ({why}); override with wavalign/hardware=cpu|gpu", flush=True)
    return chosen


def gpu_platform() -> str:
    """verl's name for the accelerators of a run on GPUs, whether or not this machine has one.

    What the user set in ``VERL_PLATFORM``; else what verl finds here; else, on a head node without an accelerator, what
    torch was built for. ``VERL_PLATFORM=cpu`` is about this machine and says nothing about those with GPUs.
    """
    asked = _asked()
    return asked if asked not in ("", "cpu") else _detected()


@cache
def _detected() -> str:
    import torch
    from verl.plugin.platform import PlatformRegistry

    # As verl detects it, without its last resort.
    for name in PlatformRegistry.registered_names():
        platform = PlatformRegistry.get(name)
        if platform is not None and platform().is_platform_available(use_smi_check=True):
            return name
    return "amd" if torch.version.hip else "nvidia"


def _asked() -> str:
    return os.environ.get("VERL_PLATFORM", "").strip().lower()
