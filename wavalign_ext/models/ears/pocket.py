"""The embedded default heard through an encoder: an ear trained from the packaged voices, and a model behind it.

``python -m wavalign_ext.models.ears.pocket`` builds it; the recipe ``wavalign_ears`` builds it when it is missing.
Voices, questions, the answers' codec, the split into rows, and what answers are the pocket model's own.
"""

import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_ext.models.names import PROJECTION
from wavalign_ext.models.pocket_variant import build_variant, variant_dir

if TYPE_CHECKING:
    import numpy as np

    from wavalign_ext.models.ears.warmstart import HeardExample

    Spoken = dict[tuple[str, str], np.ndarray]

LAYOUT, STACK, SEED = "pocket_ears", 4, 0  # STACK vectors of 20 ms make one of the model's
CHECKED, TAUGHT = 160, ("warm", "rl")  # the encoder never hears the held-out voices


def folder() -> Path:
    """The built assets' folder."""
    here = Path(__file__).parent
    sources = [here / name for name in ("pocket.py", "encoder.py", "warmstart.py")]
    sources += [here.parent / name for name in ("hearing_qwen2.py", "projectors.py")]
    return variant_dir("pocket-ears", sources, LAYOUT)


def build() -> Path:
    """The folder of the finished model, built now unless it is there."""
    what = "the model that hears (once; about 4 minutes on 2 cores)"
    return build_variant(folder(), what, lambda assets, work: _Builder(assets, work).build())


class _Builder:
    """What the stages share: the pocket model's assets, our folder, layout and tokenizer."""

    def __init__(self, assets: Path, work: Path) -> None:
        from transformers import AddedToken, AutoTokenizer

        from wavalign_ext.speech.layout import load_layout

        self.assets, self.work = assets, work
        plain = load_layout(LAYOUT)
        assert plain.encoder is not None and plain.encoder.placeholder is not None
        self.tokenizer = AutoTokenizer.from_pretrained(assets / "model")
        placeholder = AddedToken(plain.encoder.placeholder, special=True, normalized=False)
        self.tokenizer.add_tokens([placeholder], special_tokens=True)
        self.tokenizer.save_pretrained(work / "model")
        self.layout = plain.resolve(self.tokenizer)

    def build(self) -> dict[str, Any]:
        from wavalign_ext.checks.hears import measure, read_rows
        from wavalign_ext.speech.encoders import load_encoder

        began = time.monotonic()
        spoken = _spoken()
        loss = _train_encoder(spoken, self.work / "encoder")
        encoder = load_encoder({"type": "whisper", "path": self.work / "encoder", "stack": STACK})
        for split in ("train", "val"):
            self._write_rows(split, encoder)
        heard_s = time.monotonic() - began
        model, history = self._warm_start(spoken, encoder)
        model.save_pretrained(self.work / "model")
        held_out = read_rows(self.work / "data" / "val.parquet", self.work, self.tokenizer)
        return {
            "encoder": {"loss": round(loss, 3), "seconds": round(heard_s, 1)},
            "parameters": sum(p.numel() for p in model.parameters()),
            "checks": history,
            "held_out": asdict(measure(model, held_out, self.layout, self.tokenizer)),
        }

    def _write_rows(self, split: str, encoder: Any) -> None:
        """The pocket model's rows, heard through the encoder: the same questions, targets and recordings."""
        import pandas

        from wavalign_ext.speech.audio import load_audio
        from wavalign_ext.speech.heard import HEARD_FEATURES, save_features

        rows = pandas.read_parquet(self.assets / "data" / f"{split}.parquet").to_dict("records")
        fingerprint = encoder.fingerprint()
        for number, row in enumerate(rows):
            info = row["extra_info"]
            for name in ("question_audio", "answer_audio"):
                info[name] = str(self.assets / info[name])
            heard = encoder.encode(load_audio(Path(info["question_audio"]), encoder.sample_rate))
            name = f"features/{split}/{number}.safetensors"
            save_features(self.work / name, heard, encoder.name, fingerprint)
            row["prompt"] = self._message(len(heard))
            row[HEARD_FEATURES] = [name]
        (self.work / "data").mkdir(exist_ok=True)
        pandas.DataFrame(rows).to_parquet(self.work / "data" / f"{split}.parquet")

    def _message(self, frames: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.layout.user_speech_prompt([0] * frames)}]

    def _warm_start(self, spoken: "Spoken", encoder: Any) -> tuple[Any, list[dict[str, Any]]]:
        """Supervised training on the warm voices, until it answers enough of what the RL voices ask."""
        import pandas

        from wavalign_ext.checks.hears import read_rows
        from wavalign_ext.models.ears.warmstart import START, loss
        from wavalign_ext.pocket.build import balanced
        from wavalign_ext.pocket.warmstart import train

        rows = self.work / "data" / "train.parquet"
        kinds = pandas.read_parquet(rows)["ability"]
        known = list(zip(kinds, read_rows(rows, self.work, self.tokenizer), strict=True))
        asked = balanced(known, CHECKED, random.Random(SEED), kind=lambda row: row[0])
        model = _model(self.assets / "model", self.layout, len(self.tokenizer))
        taught = self._examples(spoken, encoder)
        history = train(model, taught, self.layout, START, lambda averaged: self._right(averaged, asked), loss)
        model.generation_config.eos_token_id = list(self.layout.eos_ids)
        return model, history

    def _examples(self, spoken: "Spoken", encoder: Any) -> "list[HeardExample]":
        """The rows of the pocket model's warm start, heard."""
        import pandas

        from wavalign_ext.models.ears.warmstart import HeardExample
        from wavalign_ext.speech.chat import prompt_ids

        found, heard = [], {}
        for row in pandas.read_parquet(self.assets / "data" / "warm.parquet").to_dict("records"):
            info = row["extra_info"]
            asked = (info["voice"], info["question"])
            if asked not in heard:
                heard[asked] = encoder.encode(spoken[asked])
            prompt = prompt_ids(self.tokenizer, self._message(len(heard[asked])))
            text = self.tokenizer.encode(row["target_text"], add_special_tokens=False)
            target = self.layout.target(text, list(row["target_speech"]))
            found.append(HeardExample(prompt, target, info["keywords"][0], row["ability"], heard[asked]))
        return found

    def _right(self, model: Any, asked: list[Any]) -> dict[str, float]:
        """Share of sampled answers that are right in any form, by kind; temperature 0.7, top-p 0.9."""
        from wavalign_ext.checks.hears import answers, words
        from wavalign_ext.pocket.domain import is_right

        sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
        said = words(answers(model, [row for _, row in asked], self.layout, **sampling), self.layout, self.tokenizer)
        by_kind: dict[str, list[bool]] = {}
        for (kind, row), text in zip(asked, said, strict=True):
            by_kind.setdefault(kind, []).append(is_right(text, row.keywords[0]))
        return {kind: round(sum(found) / len(found), 3) for kind, found in sorted(by_kind.items())}


def _spoken() -> "Spoken":
    """float32 waveforms, by voice and question, of what the voices that may be heard ask in known phrasings."""
    import numpy as np

    from wavalign_ext.pocket.domain import questions
    from wavalign_ext.pocket.voices import VOICES, speak

    known = [q for q in questions() if not q.held_out]
    jobs = [(voice, q) for voice in VOICES if voice.role in TAUGHT for q in known]
    waves = speak([(voice, f"{q.text}?") for voice, q in jobs], "questions")
    return {(v.name, q.text): wave.astype(np.float32) / 32768 for (v, q), wave in zip(jobs, waves, strict=True)}


def _train_encoder(spoken: "Spoken", out: Path) -> float:
    from wavalign_ext.models.ears.encoder import EarTraining, train_encoder

    return train_encoder(list(spoken.values()), [text for _, text in spoken], out, EarTraining())


def _model(pocket: Path, layout: Any, vocab_size: int) -> Any:
    """The pocket model, which answers already, with a projector that has learnt nothing yet."""
    import torch
    from transformers import AutoModelForCausalLM

    from wavalign_ext import models
    from wavalign_ext.models.hearing_qwen2 import HearingQwen2Config, HearingQwen2ForCausalLM

    models.register()
    torch.manual_seed(SEED)
    plain, facts = AutoModelForCausalLM.from_pretrained(pocket, dtype=torch.float32), layout.layout.encoder
    plain.resize_token_embeddings(vocab_size)
    heard: dict[str, Any] = dict(audio_feature_size=facts.size, audio_most=facts.most, audio_encoder=facts.type)
    sizes = {key: value for key, value in plain.config.to_dict().items() if key not in ("architectures", "model_type")}
    model = HearingQwen2ForCausalLM(HearingQwen2Config(**sizes, **heard, audio_token_id=layout.user_speech_start))
    missing, unknown = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and all(name.startswith(PROJECTION) for name in missing), (missing, unknown)
    return model


if __name__ == "__main__":
    print(build())
