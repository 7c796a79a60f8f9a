"""What a converted model of ours is again for its publisher's own code."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from wavalign_ext.checkpoints import ears


def assert_bit_equal(published: Path, converted: Path, trained: Path, dtype: torch.dtype) -> None:
    """Saved as a run would save it in ``trained`` and published again: the same tensors, bit for bit, and config."""
    AutoModelForCausalLM.from_pretrained(converted, dtype=dtype).save_pretrained(trained)
    ears.publish(trained, converted / ears.FOLDER)
    before = load_file(published / "model.safetensors")
    where = json.loads((trained / "model.safetensors.index.json").read_text())["weight_map"]
    after = {name: load_file(trained / file)[name] for name, file in where.items()}
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype and torch.equal(value, after[name]), name
    assert json.loads((trained / "config.json").read_text()) == json.loads((published / "config.json").read_text())
