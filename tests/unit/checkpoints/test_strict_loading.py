"""Every tensor of a loaded model is its file's: transformers' models, renamed, tied and cast; the policy."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, EncodecConfig, EncodecModel, GlmConfig, Qwen2Config

from wavalign_ext.checkpoints.strict_loading import (
    Weights,
    check_pretrained,
    load_strictly,
    pretrained,
    same_random_state,
)
from wavalign_ext.integration.checked_weights import CheckedWeights

SIZES: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
)


def policy(folder: Path, tied: bool = False, **arguments: Any) -> Any:
    """A small Qwen2 in bf16 in ``folder``, loaded as verl loads it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**SIZES, tie_word_embeddings=tied), dtype=torch.bfloat16)
    model.save_pretrained(folder, **arguments)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def spoil(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [False, True])
def test_a_policy_cast_to_float32_is_its_bfloat16_file(tmp_path: Path, tied: bool) -> None:
    model = policy(tmp_path, tied)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    check_pretrained(model, tmp_path, "policy")
    check_pretrained(model.to(torch.bfloat16), tmp_path, "policy")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] *= 1 + 2**-7  # the smallest step that bf16 has
    with pytest.raises(ValueError, match=r"policy: 1 tensors of \d+ are not .* \(model.layers.1.mlp.up_proj.weight\)"):
        check_pretrained(model, tmp_path, "policy")


def test_shards_and_bin_files_are_read(tmp_path: Path) -> None:
    model = policy(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 1
    check_pretrained(model, tmp_path / "shards", "policy")
    (tmp_path / "bin").mkdir()
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    check_pretrained(model, tmp_path / "bin", "policy")
    assert Weights.of(tmp_path / "bin").elements == sum(value.numel() for value in model.state_dict().values())
    torch.save({"weight": torch.ones(1), "step": 3}, tmp_path / "bin" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin' cannot be read: it holds more than tensors"):
        Weights.of(tmp_path / "bin")


def test_what_the_file_lacks_or_has_too_much_is_named(tmp_path: Path) -> None:
    policy(tmp_path)
    spoil(tmp_path, lambda tensors: tensors.pop("model.layers.0.mlp.down_proj.weight"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)  # which only logs it
    with pytest.raises(ValueError, match=r"1 tensors are missing in the file \(model.layers.0.mlp.down_proj.weight\)"):
        check_pretrained(model, tmp_path, "policy")
    policy(tmp_path)
    spoil(tmp_path, lambda tensors: tensors.update({"mtp.weight": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"1 tensors of the file are not the model's \(mtp.weight\)"):
        check_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path, "policy")
    policy(tmp_path)  # old files have rotary frequencies, which the class leaves aside
    spoil(tmp_path, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    check_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path, "policy")


def test_rotary_frequencies_that_were_lost_are_found(tmp_path: Path) -> None:
    model = policy(tmp_path)
    model.model.rotary_emb.inv_freq.zero_()
    with pytest.raises(ValueError, match=r"are computed, and not what the class computes \(model.rotary_emb.inv_freq"):
        check_pretrained(model, tmp_path, "policy")


def test_glm_s_class_is_checked_too(tmp_path: Path) -> None:
    config = GlmConfig(**SIZES, head_dim=8, tie_word_embeddings=False, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    check_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16), tmp_path, "policy")


def test_renamed_and_base_model_tensors_are_compared(tmp_path: Path) -> None:
    """EnCodec's published file has weight_g and weight_v; a base model reads the file of one with a head."""
    sizes: Any = dict(num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=8, target_bandwidths=[0.75])
    EncodecModel(EncodecConfig(**sizes)).save_pretrained(tmp_path)

    def as_published(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            new = name.replace("parametrizations.weight.original0", "weight_g")
            tensors[new.replace("parametrizations.weight.original1", "weight_v")] = tensors.pop(name)

    spoil(tmp_path, as_published)
    assert any(name.endswith("weight_g") for name in Weights.of(tmp_path))
    model = pretrained(AutoModel, tmp_path, "codec")
    assert not model.training
    model.encoder.layers[0].conv.parametrizations.weight.original0.data += 1
    with pytest.raises(ValueError, match=r"1 tensors of \d+ are not what the file says \(encoder.layers.0.conv.weight"):
        check_pretrained(model, tmp_path, "codec")
    policy(tmp_path / "head")
    spoil(tmp_path / "head", lambda tensors: tensors.pop("lm_head.weight"))
    check_pretrained(AutoModel.from_pretrained(tmp_path / "head"), tmp_path / "head", "base")


def test_a_shape_that_differs_is_one_line(tmp_path: Path) -> None:
    policy(tmp_path)
    spoil(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(17)}))
    with pytest.raises(ValueError, match="codec has no weights that load: .*"):
        pretrained(AutoModelForCausalLM, tmp_path, "codec")


def test_tensors_that_share_their_place_must_agree_in_the_file() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    same = {"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)}
    load_strictly(model, same, "tied")
    with pytest.raises(ValueError, match=r"tied: 1 tensors of 2 are not what the file says \(a.weight\)"):
        load_strictly(model, same | {"b.weight": torch.zeros(2, 2)}, "tied")


def test_bits_are_compared_not_values() -> None:
    model = nn.Linear(1, 1, bias=False)
    load_strictly(model, {"weight": torch.tensor([[float("nan")]])}, "x")
    model.register_buffer("count", torch.tensor(3))
    load_strictly(model, {"weight": torch.tensor([[-0.0]]), "count": torch.tensor(4)}, "x")
    assert torch.signbit(model.weight).all() and model.count == 4


def test_the_engine_s_mixin_checks_where_the_weights_are(tmp_path: Path) -> None:
    class Verl:
        def __init__(self, module: Any) -> None:
            self.module, self.model_config = module, SimpleNamespace(local_path=str(tmp_path))

        def _build_module(self) -> Any:
            return self.module

    class Engine(CheckedWeights, Verl): ...

    model = policy(tmp_path)
    assert Engine(model)._build_module() is model
    model.lm_head.weight.data.normal_()
    with pytest.raises(ValueError, match=rf"actor_rollout_ref.model.path='{tmp_path}': 1 tensors .*lm_head.weight"):
        Engine(model)._build_module()
    with torch.device("meta"):
        other_rank = AutoModelForCausalLM.from_config(model.config)
    assert Engine(other_rank)._build_module() is other_rank


def test_random_states_are_left_alone() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: B018
    wanted = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: B018
    with same_random_state():
        random.seed(9), draw()  # noqa: B018
    assert draw() == wanted
