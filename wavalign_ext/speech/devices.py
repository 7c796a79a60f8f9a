"""Where a codec computes: on the device that its spec names, or by turns on the GPUs of its node.

Reward workers and the processes of ``wavalign prepare`` have a number, and ``auto`` spreads them by it. Every other
process (preflight, the trainer, ``wavalign doctor``) has none and stays on the CPU: the GPUs hold training and
rollouts. Ray does not hide a node's GPUs from actors that asked for none: without this they would all share ``cuda:0``.

Only ``torch.cuda.device_count`` is asked, which makes no CUDA context on any device.
"""

import re
import sys

import torch

_number: int | None = None  # of this process, where it was given one


def choose(device: str) -> str:
    """What torch takes, for ``auto`` (a GPU, where this process has a number and a GPU is there, else the CPU),
    ``cpu``, ``cuda`` (as auto, but it must be a GPU) or ``cuda:N``.

    Raises:
        ValueError: another name, or a GPU that is not there.
    """
    gpus = _gpus(device)
    number = _number if _number is not None else _reward_worker()
    if device == "cpu" or (device == "auto" and (number is None or gpus == 0)):
        return "cpu"
    if device.startswith("cuda:"):
        return device
    return f"cuda:{(number or 0) % gpus}"


def spread(device: str) -> int:
    """How many GPUs processes with numbers share under ``device``; 0: they compute on the CPU. Raises as choose."""
    return 1 if _gpus(device) and device.startswith("cuda:") else _gpus(device)


def number_process(number: int | None) -> int | None:
    """Give this process its number among those that encode at once, from 0; returns the one it had."""
    global _number
    before, _number = _number, number
    return before


def _gpus(device: str) -> int:
    if device == "cpu":
        return 0
    if not re.fullmatch(r"auto|cuda(:\d+)?", device):
        raise ValueError(f"device={device!r} is not allowed: one of auto, cpu, cuda, cuda:N")
    gpus = torch.cuda.device_count()
    needed = int(device.partition(":")[2] or 0) + 1 if device != "auto" else 0
    if gpus < needed:
        raise ValueError(f"device={device!r} is not there: this process sees {gpus} GPUs; choose auto or cpu")
    return gpus


def _reward_worker() -> int | None:
    """The number of a reward worker among those of its node; None in any other process.

    verl names its workers ``reward_loop_worker_I`` and deals them to the nodes that have CPUs in turn
    (``RewardLoopManager._init_reward_loop_workers``).
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    found = re.fullmatch(r"reward_loop_worker_(\d+)", ray.get_runtime_context().get_actor_name() or "")
    if not found:
        return None
    nodes = sum(bool(node["Alive"] and node["Resources"].get("CPU", 0) > 0) for node in ray.nodes())
    return int(found[1]) // max(nodes, 1)
