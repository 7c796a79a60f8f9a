"""LoRA on a model that hears: the projector learns as it is, and gets no adapter."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ears_world import PLACEHOLDER, build, features
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from wavalign_ext import models
from wavalign_ext.integration.lora import Fp32Adapters
from wavalign_ext.models.names import PROJECTION


class Peft:
    """What verl's engine does with ``lora_rank``, ``target_modules`` and ``exclude_modules``."""

    def _build_lora_module(self, module: Any) -> Any:
        return get_peft_model(
            module, LoraConfig(r=4, target_modules="all-linear", exclude_modules=f".*{PROJECTION}.*", lora_alpha=8)
        )


class Engine(Fp32Adapters, Peft):
    engine_config = SimpleNamespace(strategy="fsdp2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models.register()
    return build(tmp_path_factory.mktemp("ears"))


def test_what_learns_are_the_adapters_and_the_projector(world: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.bfloat16)
    model = Engine()._build_lora_module(plain)
    named = dict(model.named_parameters())
    learns = {name for name, weight in named.items() if weight.requires_grad}
    projector = {name for name in named if PROJECTION in name}
    assert len(projector) == 4 and not any("lora_" in name for name in projector)
    assert learns == projector | {name for name in named if "lora_" in name} and len(learns) > 4
    assert {named[name].dtype for name in learns} == {torch.float32}
    assert {named[name].dtype for name in named.keys() - learns} == {torch.bfloat16}


def test_a_step_moves_the_projector(world: Path) -> None:
    model = Engine()._build_lora_module(AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    ids = torch.tensor([tokenizer.encode(f"one{PLACEHOLDER * 9}two", add_special_tokens=False)])
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    model(input_ids=ids, labels=ids, audio_features=features(0, 9)).loss.backward()
    optimizer.step()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert {name for name in before if PROJECTION in name} <= moved
    assert all(PROJECTION in name or "lora_" in name for name in moved)
