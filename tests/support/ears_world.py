"""A small model that hears: random weights, VITA-Audio's names, 32 numbers per vector. Made in a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from twins import make_it_speak

from wavalign_ext import models
from wavalign_ext.models.hearing_qwen2 import HearingQwen2Config, HearingQwen2ForCausalLM
from wavalign_ext.pocket.tokens import build_tokenizer
from wavalign_ext.speech.heard import save_features
from wavalign_ext.speech.layout import load_layout
from wavalign_ext.speech.token_names import TokenRange

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
TEXT_ALONE = {name: value for name, value in LAYOUT.items() if name not in ("begin", "end", "schedule")}
TEXT_ALONE |= {"name": "ears_text", "speech": None}
WORDS = "one two three four five six seven eight nine ten is plus you are kind".split()


def build(folder: Path, seed: int = 0, speaks: bool = True, **config: Any) -> Path:
    """``layout.yaml`` and ``model/``, in fp32, whose answers depend on what it hears; returns ``folder``.

    Unless it ``speaks`` its answers are text alone, and what would be codes are tokens that it never says.
    """
    models.register()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "layout.yaml").write_text(yaml.safe_dump(LAYOUT if speaks else TEXT_ALONE))
    layout = load_layout(LAYOUT)
    named = replace(layout, user_speech=TokenRange(PLACEHOLDER, 1), encoder=None)  # for the names of its tokens
    tokenizer = build_tokenizer([" ".join(WORDS)], named)
    tokenizer.save_pretrained(folder / "model")
    resolved = load_layout(folder / "layout.yaml").resolve(tokenizer)
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
                weight.mul_(20)
        model.lm_head.weight[:, 1:] *= 24
    model.save_pretrained(folder / "model")
    return folder


def features(seed: int, frames: int, size: int = SIZE) -> torch.Tensor:
    """(frames, size) of noise."""
    return torch.randn(frames, size, generator=torch.Generator().manual_seed(seed))


def write_rows(folder: Path, counts: list[tuple[int, ...]], encoder: str = "sensevoice", speaks: bool = True) -> Path:
    """``rows.parquet`` and its feature files in ``folder``: a row for each tuple of recordings' lengths in vectors."""
    import pandas

    table, layout = [], load_layout(LAYOUT)
    for row, frames in enumerate(counts):
        names = [f"features/{row}_{n}.safetensors" for n in range(len(frames))]
        for n, (name, count) in enumerate(zip(names, frames, strict=True)):
            save_features(folder / name, features(10 * row + n, count), encoder, "print")
        said = "".join(layout.chat.around(PLACEHOLDER * count, "", "user") for count in frames)
        table.append(
            {
                "data_source": "wavalign/ears",
                "prompt": [{"role": "user", "content": said}],
                "heard_features": names,
                "reward_model": {"style": "rule", "ground_truth": "three is four"},
                "target_text": " three is four",
                "target_speech": [(5 * row + 3 * n) % CODES for n in range(14 * speaks)],
                "extra_info": {"index": row, "question": "two plus two"},
            }
        )
    pandas.DataFrame(table).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"
