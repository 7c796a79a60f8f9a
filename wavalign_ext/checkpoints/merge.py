"""verl's model merger, kept from rounding: ``python -m verl.model_merger`` writes bf16 whatever was trained.

Imports verl; :mod:`wavalign_ext.checkpoints.export` does so only when it merges.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from verl.model_merger.base_model_merger import ModelMergerConfig
from verl.model_merger.fsdp_model_merger import FSDPModelMerger, merge_non_dtensor_shards

from wavalign_ext import models, parallel
from wavalign_ext.checkpoints.strict_loading import check_pretrained


def merge(actor: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Write the checkpoint in ``actor`` as a Hugging Face folder, in ``dtype`` or that of the checkpoint."""
    models.register()
    parallel.register()
    settings = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(actor),
        target_dir=str(target),
        hf_model_config_path=str(actor / "huggingface"),
    )
    merger = _ExactMerger(settings, dtype)
    merger.merge_and_save()
    _name_dtype(target)
    if (target / "lora_adapter").is_dir():
        _apply_adapter(target)


class _ExactMerger(FSDPModelMerger):
    def __init__(self, config: ModelMergerConfig, dtype: torch.dtype | None) -> None:
        super().__init__(config)
        self.dtype = dtype

    def _load_and_merge_state_dicts(
        self, world_size: int, total_shards: int, mesh_shape: tuple[int, ...], mesh_dim_names: tuple[str, ...]
    ) -> dict[str, torch.Tensor]:
        """The base class's, without its ``.bfloat16()``. The first ``total_shards`` ranks hold one whole copy."""
        folder = Path(str(self.config.local_dir))
        ranks = [
            torch.load(folder / f"model_world_size_{world_size}_rank_{rank}.pt", map_location="cpu", weights_only=False)
            for rank in range(total_shards)
        ]
        merged = {}
        for key in sorted(ranks[0]):
            whole = self._whole(key, [rank.pop(key) for rank in ranks])
            merged[key] = whole.to(self.dtype) if self.dtype and whole.is_floating_point() else whole
        return merged

    def _whole(self, key: str, parts: list[Any]) -> torch.Tensor:
        if not isinstance(parts[0], DTensor):
            return merge_non_dtensor_shards(key, parts)
        placement = parts[0].placements[-1]  # of the sharded dimension; one before it, if any, holds copies
        return self._merge_by_placement([part.to_local() for part in parts], placement)


def _name_dtype(folder: Path) -> None:
    """State the dtype of the stored weights: verl's merger says bfloat16, and loading would round to that."""
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    if len(found) == 1 and (stored := found.pop()) in names:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": names[stored]}, indent=2) + "\n")


def _apply_adapter(folder: Path) -> None:
    """Add the LoRA adapter, which verl's merger writes beside the base, to the weights of the base."""
    base = AutoModelForCausalLM.from_pretrained(folder)
    check_pretrained(base, folder, f"merged base {str(folder)!r}")
    adapter = folder / "lora_adapter"
    merged: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    for weights in folder.glob("model*.safetensors*"):
        weights.unlink()
    merged.save_pretrained(folder)
    shutil.rmtree(adapter)
