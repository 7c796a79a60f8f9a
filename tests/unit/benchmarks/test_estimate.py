"""The estimate counts the parameters that the model classes have, and follows what a recipe says."""

import json
import re
from pathlib import Path
from typing import Any

import estimate
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file


@pytest.mark.parametrize("name", ["vita", "glm4"])
def test_the_parameters_are_the_classes(name: str) -> None:
    from transformers import AutoModelForCausalLM, GlmConfig, Qwen2Config

    g = estimate.Geometry(**estimate.KNOWN[name])
    sizes: dict[str, Any] = dict(
        vocab_size=g.vocabulary,
        hidden_size=g.hidden,
        intermediate_size=g.mlp,
        num_hidden_layers=g.layers,
        num_attention_heads=g.heads,
        num_key_value_heads=g.kv_heads,
        tie_word_embeddings=False,
    )
    glm = name == "glm4"
    config = GlmConfig(**sizes, head_dim=g.head_size, attention_bias=True) if glm else Qwen2Config(**sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert g.parameters == sum(p.numel() for p in model.parameters())


def printed(capsys: pytest.CaptureFixture, *argv: str) -> str:
    assert estimate.main(list(argv)) == 0
    return capsys.readouterr().out


def total(text: str, phase: str) -> float:
    found = re.search(rf"GB per GPU, {phase}\n(?:.*\n)*?\s+([\d.]+)  in all: (.*)", text)
    assert found is not None
    return float(found[1])


def test_a_recipe_is_estimated(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    text = printed(capsys, "--recipe", "wavalign_vita_audio")
    assert "an estimate from the geometry, not a measurement" in text
    assert "8 GPUs of 80 GB" in text and "MFU 0.4" in text and "fits in 80" in text
    one = printed(capsys, "--recipe", "wavalign_vita_audio", "trainer.n_gpus_per_node=2")
    assert total(one, "training") > total(text, "training") > 20
    assert "DOES NOT FIT" in printed(capsys, "--recipe", "wavalign_glm4_voice", "--gpu-gb", "24")

    sizes = dict(num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=2)
    (tmp_path / "config.json").write_text(json.dumps(sizes | dict(num_key_value_heads=1, vocab_size=100)))
    assert "0.00 billion parameters" in printed(capsys, "--model", str(tmp_path))
    with pytest.raises(SystemExit):
        estimate.main(["--recipe", "wavalign"])
    assert "give --model a folder" in capsys.readouterr().err


def decoding(text: str) -> tuple[int, float]:
    """(reward workers on a GPU, their GB)."""
    found = re.search(r"([\d.]+)  speech decoders of (\d+) reward workers", text)
    return (int(found[2]), float(found[1])) if found else (0, 0.0)


def test_the_decoders_of_the_reward_workers_are_counted(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    recipe = ["--recipe", "wavalign_glm4_voice", "--context-gb", "0.5"]
    spread = printed(capsys, *recipe, "reward.num_workers=8")
    assert decoding(spread) == (1, 1.0)  # 131.6 million parameters in float32, and the context
    crowded = printed(capsys, *recipe, "reward.num_workers=20")
    assert decoding(crowded) == (3, 3.1)
    assert total(crowded, "training") - total(spread, "training") == pytest.approx(2.1, abs=0.11)
    assert total(crowded, "rollout") - total(spread, "rollout") == pytest.approx(2.1, abs=0.11)
    assert decoding(printed(capsys, *recipe, "reward.num_workers=8", "+wavalign.codec.device=cuda:0")) == (8, 8.2)
    assert decoding(printed(capsys, *recipe, "+wavalign.codec.device=cpu")) == (0, 0.0)
    assert decoding(printed(capsys, *recipe, "reward.num_workers=16", "trainer.nnodes=2")) == (1, 1.0)
    save_file({"a": torch.ones(30, 10), "b": torch.ones(5)}, tmp_path / "model.safetensors")
    codec = OmegaConf.create({"type": "transformers", "path": str(tmp_path)})
    assert estimate.decoder_parameters(codec) == 305
    assert estimate.decoder_parameters(OmegaConf.create({"type": "mel_vq", "path": "?"})) == 0


def test_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        estimate.main(["--help"])
    assert stopped.value.code == 0
    assert "not a measurement" in capsys.readouterr().out
