"""Reading an encoder's weights out of a checkpoint, and loading them with nothing missing, left over or changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from wavalign_ext.checkpoints.strict_loading import load_strictly

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Network = TypeVar("Network", bound=nn.Module)


def read_tensors(folder: Path, prefix: str, where: str) -> dict[str, torch.Tensor]:
    """The tensors of ``model.safetensors`` or its shards whose names begin with ``prefix``, by the rest of the name.

    Raises ValueError, beginning with ``where``, when the folder has no such file or one that is not whole.
    """
    from safetensors import SafetensorError, safe_open

    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        shards = json.loads(index.read_text())["weight_map"]
        files = sorted({folder / file for name, file in shards.items() if name.startswith(prefix)})
    elif single.is_file():
        files = [single]
    else:
        raise ValueError(f"{where} has no model.safetensors: give the folder of the published checkpoint")
    tensors = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():
                    if name.startswith(prefix):
                        tensors[name.removeprefix(prefix)] = opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{where}: {file.name} cannot be read: {error}; copy it again") from error
    return tensors


def build_network(
    build: Callable[[], Network], tensors: dict[str, torch.Tensor], where: str, dtype: str | None = None
) -> Network:
    """A network of ``build()`` with exactly ``tensors`` in it, compared with them afterwards.

    Built without memory first, so ``build()`` may compute no buffer that is not among its weights.

    Args:
        dtype: float32, bfloat16 or float16; None for what the tensors are stored in.

    Raises:
        ValueError: beginning with ``where``: names or shapes differ, a weight is not finite, or the dtype is not one.
    """
    chosen = _dtype(tensors, where, dtype)
    broken = next((name for name, value in tensors.items() if not value.isfinite().all()), None)
    if broken is not None:
        raise ValueError(f"{where}: tensor {broken} has values that are not finite: copy the checkpoint again")
    with torch.device("meta"):
        network = build()
    assert {name for name, _ in network.named_buffers()} <= network.state_dict().keys(), "a computed buffer is lost"
    network = network.to(chosen).to_empty(device="cpu")
    load_strictly(network, tensors, where)
    return network


def _dtype(tensors: dict[str, torch.Tensor], where: str, name: str | None) -> torch.dtype:
    if name is not None:
        if name not in DTYPES:
            raise ValueError(f"{where}: dtype={name!r} is not allowed: one of {', '.join(DTYPES)}")
        return DTYPES[name]
    stored = {value.dtype for value in tensors.values()}
    if len(stored) != 1:
        kinds = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in stored)) or "no weights"
        raise ValueError(f"{where} is stored in {kinds}, not in one dtype: set dtype to one of {', '.join(DTYPES)}")
    return stored.pop()
