"""Every test here runs in a folder of its own: recipes look for their run in the current one, where one may lie.

And a run that begins in a test's process, as every preflight does, leaves neither variables nor a platform behind.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_world
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    import verl.plugin.platform.platform_manager as manager

    before, platform = dict(os.environ), manager.get_platform()
    yield
    os.environ.clear()
    os.environ.update(before)
    manager._current_platform = platform


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM with 64 tokens and random weights, as verl's worker loads one."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    Qwen2Tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A layout, a tokenizer and two codecs of 16 codes, and a recording."""
    made = small_world.build(tmp_path_factory.mktemp("world"))
    small_world.record(made.folder / "q.wav", small_world.voice(1))
    return made
