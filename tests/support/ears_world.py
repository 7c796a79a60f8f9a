"""A small model that hears: random weights, VITA-Audio's names, 32 numbers per vector. Made in a second."""

from pathlib import Path
from typing import Any

import torch
import yaml
from twins import make_it_speak

from wavalign_ext import models
from wavalign_ext.models.hearing_qwen2 import HearingQwen2Config, HearingQwen2ForCausalLM
from wavalign_ext.pocket.tokens import build_tokenizer
from wavalign_ext.speech.layout import load_layout

CODES, SIZE, MOST = 16, 32, 64
PLACEHOLDER = "<|context_of_audio|>"
LAYOUT: dict[str, Any] = {
    "name": "ears",
    "speech": {"pattern": "<|audio_{}|>", "count": CODES},
    "user_speech": "continuous",
    "encoder": {"type": "sensevoice", "size": SIZE, "most": MOST, "placeholder": PLACEHOLDER},
    "begin": "<|begin_of_audio|>",
    "end": "<|end_of_audio|>",
    "schedule": [[1, 6], [2, 6]],
    "eos": ["<|im_end|>"],
    "pad": "<|endoftext|>",
    "chat": {"user_speech": {"before": "\n", "begin": "<|begin_of_audio|>", "end": "<|end_of_audio|>"}},
}
WORDS = "one two three four five six seven eight nine ten is plus you are kind".split()


def build(folder: Path, seed: int = 0, **config: Any) -> Path:
    """``layout.yaml`` and ``model/``, in fp32, whose answers depend on what it hears; returns ``folder``."""
    models.register()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "layout.yaml").write_text(yaml.safe_dump(LAYOUT))
    layout = load_layout(LAYOUT)
    tokenizer = build_tokenizer([" ".join(WORDS)], layout)
    tokenizer.save_pretrained(folder / "model")
    resolved = layout.resolve(tokenizer)
    sizes: dict[str, Any] = dict(
        vocab_size=len(tokenizer) + -len(tokenizer) % 64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=list(resolved.eos_ids),
        pad_token_id=resolved.pad_id,
        bos_token_id=None,
        audio_token_id=resolved.user_speech_start,
        audio_feature_size=SIZE,
        audio_most=MOST,
    )
    torch.manual_seed(seed)
    model = HearingQwen2ForCausalLM(HearingQwen2Config(**sizes | config))
    make_it_speak(model, resolved)
    with torch.no_grad():
        for name, weight in model.audio_projection.named_parameters():
            if "norm" not in name:
                weight.mul_(10)
        model.lm_head.weight[:, 1:] *= 8
    model.save_pretrained(folder / "model")
    return folder


def features(seed: int, frames: int, size: int = SIZE) -> torch.Tensor:
    """(frames, size) of noise."""
    return torch.randn(frames, size, generator=torch.Generator().manual_seed(seed))
