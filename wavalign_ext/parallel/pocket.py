"""The embedded default on two streams: a model of a few million parameters on the pocket model's data.

``python -m wavalign_ext.parallel.pocket`` builds it; the recipe ``wavalign_parallel`` builds it when it is missing.
Voices, codecs, codes and rows are the pocket model's own.
"""

import hashlib
import json
import os
import random
import shutil
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_ext.pocket import pocket_dir

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
    """The built model's folder, beside the pocket model's, named by that and by what makes this one."""
    digest = hashlib.sha256(pocket_dir().name.encode())
    for source in ("pocket", "warmstart", "tokenizer", "model", "config"):
        digest.update(Path(__file__).with_name(f"{source}.py").read_bytes())
    digest.update((resources.files("wavalign_recipes") / "layout" / f"{LAYOUT}.yaml").read_bytes())
    return pocket_dir().with_name(f"pocket-parallel-{digest.hexdigest()[:12]}")


def build() -> Path:
    """The folder of the finished model, built now unless it is there; a second process waits for the first."""
    from filelock import FileLock

    from wavalign_ext.pocket.build import build as build_pocket

    out, assets = folder(), build_pocket()
    with FileLock(out.with_name(out.name + ".lock")):
        if (out / "report.json").is_file():
            return out
        print(f"wavalign: building the two-stream model in {out} (once; about 4 minutes on 2 cores)", flush=True)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        work = out.with_name(out.name + ".building")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        began = time.monotonic()
        report = _build(assets, work)
        report["seconds"] = round(time.monotonic() - began, 1)
        (work / "report.json").write_text(json.dumps(report, indent=1))
        os.replace(work, out)
    return out


def _build(assets: Path, work: Path) -> dict[str, Any]:
    import torch

    from wavalign_ext.parallel.model import TwoStreamForCausalLM
    from wavalign_ext.parallel.tokenizer import build_tokenizer, model_config
    from wavalign_ext.parallel.warmstart import START, loss
    from wavalign_ext.pocket.build import balanced
    from wavalign_ext.pocket.domain import questions
    from wavalign_ext.pocket.warmstart import train
    from wavalign_ext.speech.layout import load_layout
    from wavalign_ext.speech.parallel import ParallelLayout

    plain = load_layout(LAYOUT)
    tokenizer = build_tokenizer([text for q in questions() for text in (q.text, q.answer)], plain)
    tokenizer.save_pretrained(work / "model")
    layout = plain.resolve(tokenizer)
    assert isinstance(layout, ParallelLayout)
    torch.manual_seed(SEED)
    config = model_config(layout, len(tokenizer), **SHAPE)
    model = TwoStreamForCausalLM(config)
    taught = _recorded(assets, "train", layout, tokenizer)
    asked = balanced(taught, CHECKED, random.Random(SEED), kind=lambda e: e.kind)
    spoken = _spoken(assets, layout, tokenizer)
    history = train(model, spoken, layout, START, lambda m: right(m, asked, layout, tokenizer), loss)
    model.save_pretrained(work / "model")
    held_out = _recorded(assets, "val", layout, tokenizer)
    numbers = right(model, held_out, layout, tokenizer)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "checks": history,
        "validation": {"exact": round(sum(numbers.values()) / len(numbers), 3), **numbers},
    }


def right(model: Any, asked: "list[Example]", layout: Any, tokenizer: Any) -> dict[str, float]:
    """Share of sampled answers with exactly the right words, by kind; temperature 0.7, top-p 0.9."""
    from wavalign_ext.parallel.generate import draw_answers

    prompts = [example.prompt_ids for example in asked]
    said = draw_answers(model, prompts, most_frames=MOST_FRAMES, temperature=0.7, top_p=0.9, seed=SEED)
    by_kind: dict[str, list[bool]] = {}
    for example, ids in zip(asked, said, strict=True):
        by_kind.setdefault(example.kind, []).append(tokenizer.decode(layout.split(ids).text_ids) == example.answer)
    return {kind: round(sum(found) / len(found), 3) for kind, found in sorted(by_kind.items())}


def _spoken(assets: Path, layout: Any, tokenizer: Any) -> "list[Example]":
    """Every known phrasing by the voices of the warm start, as the pocket model's own warm start has them."""
    import numpy as np

    from wavalign_ext.pocket.domain import items, questions
    from wavalign_ext.pocket.voices import VOICES, speak
    from wavalign_ext.speech.audio import load_audio
    from wavalign_ext.speech.codecs import load_codec

    known = [q for q in questions() if not q.held_out]
    jobs = [(voice, q) for voice in VOICES if voice.role == "warm" for q in known]
    waves = speak([(voice, f"{q.text}?") for voice, q in jobs], "questions")
    units = load_codec({"type": "units", "path": assets / "units"})
    codec = load_codec({"type": "mel_vq", "path": assets / "codec"})
    files = [assets / "audio" / "answer" / f"{number}.flac" for number in range(len(items()))]
    codes = [codec.encode(load_audio(file, codec.sample_rate)) for file in files]
    found = []
    for (_, q), wave in zip(jobs, waves, strict=True):
        content = layout.user_speech_prompt(units.encode(wave.astype(np.float32) / 32768))
        found.append(_example(content, q.answer, codes[q.item], q.kind, layout, tokenizer))
    return found


def _recorded(assets: Path, split: str, layout: Any, tokenizer: Any) -> "list[Example]":
    """The rows that a run trains on, or is validated with."""
    import pandas

    rows = pandas.read_parquet(assets / "data" / f"{split}.parquet").to_dict("records")
    return [
        _example(r["prompt"][0]["content"], r["target_text"], r["target_speech"], r["ability"], layout, tokenizer)
        for r in rows
    ]


def _example(content: str, answer: str, codes: Any, kind: str, layout: Any, tokenizer: Any) -> "Example":
    from wavalign_ext.pocket.warmstart import Example
    from wavalign_ext.speech.chat import prompt_ids

    prompt = layout.prompt(prompt_ids(tokenizer, [{"role": "user", "content": content}]))
    target = layout.target(tokenizer.encode(answer, add_special_tokens=False), list(codes))
    return Example(prompt, target, answer, kind)


if __name__ == "__main__":
    print(build())
