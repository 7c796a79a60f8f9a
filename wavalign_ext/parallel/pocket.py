"""The embedded default on two streams: a model of a few million parameters on the pocket model's data.

``python -m wavalign_ext.parallel.pocket`` builds it; the recipe ``wavalign_parallel`` builds it when it is missing.
Voices, codecs, codes and rows are the pocket model's own.
"""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_ext.models.pocket_variant import build_variant, variant_dir

if TYPE_CHECKING:
    from wavalign_ext.pocket.warmstart import Example

LAYOUT, SEED = "pocket_parallel", 0
MOST_FRAMES, CHECKED = 64, 160
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "fork_layer": 2,
    "audio_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def folder() -> Path:
    """The built model's folder."""
    sources = ("pocket", "warmstart", "tokenizer", "model", "config")
    return variant_dir("pocket-parallel", [Path(__file__).with_name(f"{name}.py") for name in sources], LAYOUT)


def build() -> Path:
    """The folder of the finished model, built now unless it is there."""
    return build_variant(folder(), "the two-stream model (once; about 4 minutes on 2 cores)", _build)


def _build(assets: Path, work: Path) -> dict[str, Any]:
    import torch

    from wavalign_ext.parallel.model import TwoStreamForCausalLM
    from wavalign_ext.parallel.tokenizer import build_tokenizer, model_config
    from wavalign_ext.parallel.warmstart import START, loss
    from wavalign_ext.pocket.build import balanced
    from wavalign_ext.pocket.domain import FORMS, items, questions
    from wavalign_ext.pocket.warmstart import train
    from wavalign_ext.speech.layout import load_layout
    from wavalign_ext.speech.parallel import ParallelLayout

    plain = load_layout(LAYOUT)
    texts = [q.text for q in questions()] + [form.format(item.word) for item in items() for form in FORMS.values()]
    tokenizer = build_tokenizer(texts, plain)
    tokenizer.save_pretrained(work / "model")
    layout = plain.resolve(tokenizer)
    assert isinstance(layout, ParallelLayout)
    torch.manual_seed(SEED)
    config = model_config(layout, len(tokenizer), **SHAPE)
    model = TwoStreamForCausalLM(config)
    taught = _examples(assets, "train", layout, tokenizer)
    asked = balanced(taught, CHECKED, random.Random(SEED), kind=lambda e: e.kind)
    spoken = _examples(assets, "warm", layout, tokenizer)
    history = train(model, spoken, layout, START, lambda m: right(m, asked, layout, tokenizer), loss)
    model.save_pretrained(work / "model")
    held_out = _examples(assets, "val", layout, tokenizer)
    numbers = right(model, held_out, layout, tokenizer)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "checks": history,
        "validation": {"right": round(sum(numbers.values()) / len(numbers), 3), **numbers},
    }


def right(model: Any, asked: "list[Example]", layout: Any, tokenizer: Any) -> dict[str, float]:
    """Share of sampled answers that are right in any form, by kind; temperature 0.7, top-p 0.9."""
    from wavalign_ext.parallel.generate import draw_answers
    from wavalign_ext.pocket.domain import is_right

    prompts = [example.prompt_ids for example in asked]
    said = draw_answers(model, prompts, most_frames=MOST_FRAMES, temperature=0.7, top_p=0.9, seed=SEED)
    by_kind: dict[str, list[bool]] = {}
    for example, ids in zip(asked, said, strict=True):
        text = tokenizer.decode(layout.split(ids).text_ids)
        by_kind.setdefault(example.kind, []).append(is_right(text, example.answer))
    return {kind: round(sum(found) / len(found), 3) for kind, found in sorted(by_kind.items())}


def _examples(assets: Path, split: str, layout: Any, tokenizer: Any) -> "list[Example]":
    """The rows of one of the pocket model's splits as token ids."""
    import pandas

    from wavalign_ext.pocket.warmstart import Example
    from wavalign_ext.speech.chat import prompt_ids

    found = []
    for row in pandas.read_parquet(assets / "data" / f"{split}.parquet").to_dict("records"):
        prompt = layout.prompt(prompt_ids(tokenizer, list(row["prompt"])))
        text = tokenizer.encode(row["target_text"], add_special_tokens=False)
        target = layout.target(text, list(row["target_speech"]))
        found.append(Example(prompt, target, row["extra_info"]["keywords"][0], row["ability"]))
    return found


if __name__ == "__main__":
    print(build())
