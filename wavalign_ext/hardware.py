"""Which hardware a run uses, decided once, in the driver.

``VERL_PLATFORM`` is verl's own switch. When it is unset, WavAlign looks for an accelerator and sets it; the recipe's
``hardware`` preset forwards it to every Ray worker, because a worker without a GPU of its own (the task runner, the
reward workers) would otherwise conclude that the whole cluster has none.
"""

import os
from functools import cache

PRESETS = ("cpu", "gpu")


def choose_platform() -> None:
    """Set ``VERL_PLATFORM=cpu`` when nothing chose a platform and no accelerator is visible."""
    if not os.environ.get("VERL_PLATFORM") and not _in_ray_worker() and not accelerator_visible():
        os.environ["VERL_PLATFORM"] = "cpu"


def accelerator_visible() -> bool:
    """Whether torch sees a CUDA/ROCm device or an Ascend NPU in this process."""
    import torch

    npu = getattr(torch, "npu", None)
    return torch.cuda.is_available() or bool(npu and npu.is_available())


@cache
def preset() -> str:
    """Name of the hardware preset for this machine: ``cpu`` or ``gpu``. Printed once."""
    platform = os.environ.get("VERL_PLATFORM", "").strip().lower()
    chosen = "cpu" if platform == "cpu" else "gpu"
    why = f"VERL_PLATFORM={platform}" if platform else "an accelerator is visible"
    print(f"wavalign: hardware preset '{chosen}' ({why}); override with wavalign/hardware=cpu|gpu", flush=True)
    return chosen


def _in_ray_worker() -> bool:
    # Ray's raylet sets this for the processes it starts.
    return "RAY_RAYLET_PID" in os.environ
