"""Builds the asset folder: voices, codebooks, tokenizer, data, warm start. Stages that are done stay done."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wavalign_ext.pocket import SAMPLE_RATE, pocket_dir
from wavalign_ext.pocket.domain import FORMS, Question, items, questions
from wavalign_ext.pocket.rows import Said, Spoken
from wavalign_ext.pocket.voices import DULL, LIVELY, MANNERS, VOICES, Voice

SEED = 0
TRAIN_ROWS, VAL_ROWS = 1024, 96
WARM, RL, HELD_OUT = "warm", "rl", "held_out"
WARM_DRAWS = 3  # rows of the warm start for each spoken question, each with another form and manner
CHECKED_QUESTIONS = 160


def build(out: Path | None = None, force: bool = False) -> Path:
    """The folder of the finished assets, built now unless it is there.

    A build works in ``OUT.building`` and renames it when it is complete; an interrupted one goes on from its last
    finished stage. A second process that wants the same folder waits for the first.
    """
    from filelock import FileLock

    out = out or pocket_dir()
    work = out.with_name(out.name + ".building")
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(out.name + ".lock")):
        if force:
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)
        if (out / "report.json").is_file():
            return out
        print(f"wavalign: building the pocket model in {out} (once; 3 to 5 minutes on 2 cores)", flush=True)
        # Read when torch is first imported: threads that spin while they wait make a shared machine ten times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        work.mkdir(exist_ok=True)
        builder = _Builder(work)
        for stage in (builder.speak, builder.fit, builder.encode, builder.warm_start):
            builder.run(stage)
        builder.finish()
        os.replace(work, out)
    return out


class _Builder:
    """The stages, in order; each leaves files in ``work`` and its seconds and numbers in ``notes``."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.notes_path = work / "notes.json"
        self.notes: dict[str, Any] = json.loads(self.notes_path.read_text()) if self.notes_path.is_file() else {}

    def run(self, stage: Callable[[], dict[str, Any]]) -> None:
        name = stage.__name__
        if name in self.notes:
            return
        began = time.monotonic()
        numbers = stage()
        self.notes[name] = {"seconds": round(time.monotonic() - began, 1), **numbers}
        self.notes_path.write_text(json.dumps(self.notes, indent=1))

    # --- voices ---------------------------------------------------------------------------------------------------

    def speak(self) -> dict[str, Any]:
        """Every question by the voices that ask it, every form of every answer in both manners; for the next stages."""
        from wavalign_ext.pocket.voices import MANNERS, speak

        asked, said = _asked(), said_answers()
        spoken = speak([(voice, f"{q.text}?") for voice, q in asked], "questions")
        answers = speak([(MANNERS[manner], f"{FORMS[form].format(word)}.") for word, form, manner in said], "answers")
        _save_waves(self.work / "questions.npz", spoken)
        _save_waves(self.work / "answers.npz", answers)
        seconds = sum(map(len, spoken + answers)) / SAMPLE_RATE
        return {"voices": len(VOICES), "utterances": len(spoken) + len(answers), "speech_seconds": round(seconds)}

    def answers(self) -> dict[Said, np.ndarray]:
        """The recorded answers."""
        return dict(zip(said_answers(), _load_waves(self.work / "answers.npz"), strict=True))

    # --- codebooks ------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, Any]:
        """The two codebooks, and the table that tells a lively code from a dull one."""
        from wavalign_ext.pocket.fit import fit_mel_vq, fit_units, manner_table
        from wavalign_ext.speech.asr import write_language_model
        from wavalign_ext.speech.codecs import load_codec

        waves = _load_waves(self.work / "questions.npz")
        heard = [wave for (voice, _), wave in zip(_asked(), waves, strict=True) if voice.role in (WARM, RL)]
        random.Random(SEED).shuffle(heard)
        fit_units(heard[:1200], self.work / "units", SEED)
        answers = self.answers()
        fit_mel_vq(list(answers.values()), self.work / "codec", SEED)
        sentences = sorted({FORMS[form].format(word) for word, form, _ in answers})
        write_language_model(sentences, self.work / "asr" / "answers.arpa")
        codec = load_codec({"type": "mel_vq", "path": self.work / "codec"})
        codes = [(said[2], codec.encode(wave)) for said, wave in answers.items()]
        table = manner_table(codes, LIVELY, DULL, codec.codebook_size)
        (self.work / "codec" / "manner.json").write_text(json.dumps([round(float(value), 4) for value in table]))
        return {"answers": len(answers)}

    # --- data -----------------------------------------------------------------------------------------------------

    def encode(self) -> dict[str, Any]:
        """Tokenizer, verl's parquet files with their audio, and the examples of the warm start."""
        from wavalign_ext.pocket.rows import RowWriter, demonstration, write_answers
        from wavalign_ext.pocket.tokens import build_tokenizer
        from wavalign_ext.speech.codecs import load_codec
        from wavalign_ext.speech.layout import load_layout

        answers = self.answers()
        texts = [q.text for q in questions()] + [FORMS[form].format(word) for word, form, _ in answers]
        tokenizer = build_tokenizer(texts, load_layout("pocket"))
        tokenizer.save_pretrained(self.work / "model")
        units = load_codec({"type": "units", "path": self.work / "units"})
        codec = load_codec({"type": "mel_vq", "path": self.work / "codec"})
        codes = {said: codec.encode(wave) for said, wave in answers.items()}
        waves = _load_waves(self.work / "questions.npz")
        asked = tqdm(zip(_asked(), waves, strict=True), "questions to units", len(waves), unit="utt")
        spoken = [Spoken(voice, q, wave, units.encode(wave)) for (voice, q), wave in asked]

        rng = random.Random(SEED)
        of = {role: [s for s in spoken if s.voice.role == role] for role in (WARM, RL, HELD_OUT)}
        warm = [s for role in (WARM, RL) for s in of[role] if s.question.taught]
        train = balanced([s for s in of[RL] if s.question.taught], TRAIN_ROWS, rng)
        taught = [s for s in of[HELD_OUT] if s.question.taught]
        known = balanced([s for s in taught if not s.question.held_out], VAL_ROWS * 3 // 4, rng)
        new = balanced([s for s in taught if s.question.held_out], VAL_ROWS // 4, rng)
        val = [row for three, one in zip(_in_threes(known), new, strict=True) for row in (*three, one)]
        writer = RowWriter(self.work, codes)
        both = list(MANNERS)
        writer.write("warm", [(s, demonstration(rng, both)) for s in warm for _ in range(WARM_DRAWS)], audio=False)
        writer.write("train", [(s, demonstration(rng)) for s in train])
        writer.write("val", [(s, demonstration(rng)) for s in val])
        writer.write("untaught", [(s, demonstration(rng)) for s in of[RL] if not s.question.taught])
        writer.write(
            "held_out", [(s, demonstration(rng)) for s in of[HELD_OUT] if not s.question.held_out], audio=False
        )
        write_answers(self.work, answers)
        return {"train_rows": len(train), "val_rows": len(val), "vocabulary": len(tokenizer)}

    # --- model ----------------------------------------------------------------------------------------------------

    def warm_start(self) -> dict[str, Any]:
        """Supervised training on the warm voices, until it answers enough of what the RL voices ask."""
        from transformers import AutoTokenizer

        from wavalign_ext.pocket.warmstart import WarmStart, accuracy, new_model, train
        from wavalign_ext.speech.layout import load_layout

        tokenizer = AutoTokenizer.from_pretrained(self.work / "model")
        layout, settings = load_layout("pocket").resolve(tokenizer), WarmStart()
        asked = balanced(examples(self.work, "train"), CHECKED_QUESTIONS, random.Random(SEED), kind=lambda e: e.kind)
        model = new_model(len(tokenizer), layout, settings)
        history = train(
            model,
            examples(self.work, "warm"),
            layout,
            settings,
            lambda taught: accuracy(taught, asked, layout, tokenizer, group=1)["by_kind"],
        )
        model.generation_config.eos_token_id = list(layout.eos_ids)
        model.save_pretrained(self.work / "model")
        return {"parameters": sum(p.numel() for p in model.parameters()), "checks": history}

    def finish(self) -> None:
        """Write the report and the layout, drop what only the build needed."""
        for name in ("questions.npz", "answers.npz"):
            (self.work / name).unlink(missing_ok=True)
        versions = {
            name: version(name) for name in ("torch", "transformers", "ttspico", "pocketsphinx", "scikit-learn")
        }
        layout = resources.files("wavalign_recipes") / "layout" / "pocket.yaml"
        (self.work / "layout.yaml").write_text(layout.read_text())
        files = [path for path in self.work.rglob("*") if path.is_file() and path != self.notes_path]
        megabytes = round(sum(path.stat().st_size for path in files) / 1e6, 1)
        report = {"seed": SEED, **self.notes, "megabytes": megabytes, "versions": versions}
        self.notes_path.unlink()
        (self.work / "report.json").write_text(json.dumps(report, indent=1))


def summary(folder: Path) -> str:
    """The report of a finished build, for people."""
    report = json.loads((folder / "report.json").read_text())
    lines = [f"pocket assets: {folder}"]
    lines += [f"  {name:<11}{report[name]['seconds']:>7} s" for name in ("speak", "fit", "encode", "warm_start")]
    return "\n".join(lines)


def examples(folder: Path, split: str) -> list[Any]:
    """The rows of a split as token ids."""
    import pandas
    from transformers import AutoTokenizer

    from wavalign_ext.pocket.warmstart import Example
    from wavalign_ext.speech.chat import prompt_ids
    from wavalign_ext.speech.layout import load_layout

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    layout = load_layout("pocket").resolve(tokenizer)
    found = []
    for row in pandas.read_parquet(folder / "data" / f"{split}.parquet").to_dict("records"):
        text = tokenizer.encode(row["target_text"], add_special_tokens=False)
        target = layout.target(text, list(row["target_speech"]))
        prompt = prompt_ids(tokenizer, list(row["prompt"]))
        found.append(Example(prompt, target, row["extra_info"]["keywords"][0], row["ability"]))
    return found


def balanced(rows: list[Any], count: int, rng: random.Random, kind: Callable[[Any], str] = lambda s: s.kind) -> list:
    """``count`` rows, kinds taking turns, each kind shuffled and reused when it runs out."""
    by_kind: dict[str, list[Any]] = {}
    for row in rows:
        by_kind.setdefault(kind(row), []).append(row)
    for members in by_kind.values():
        rng.shuffle(members)
    kinds = sorted(by_kind)
    turns = [(kinds[i % len(kinds)], i // len(kinds)) for i in range(count)]
    return [by_kind[name][turn % len(by_kind[name])] for name, turn in turns]


def _asked() -> list[tuple[Voice, Question]]:
    """Who asks what: a warm voice what is taught, held-out voices in held-out phrasings too."""
    return [
        (voice, q)
        for voice in VOICES
        for q in questions()
        if (voice.role == HELD_OUT or not q.held_out) and (voice.role != WARM or q.taught)
    ]


def said_answers() -> list[Said]:
    """Every answer that is recorded."""
    words = dict.fromkeys(item.word for item in items())
    return [(word, form, manner) for word in words for form in FORMS for manner in MANNERS]


def _in_threes(rows: list[Any]) -> list[list[Any]]:
    return [rows[start : start + 3] for start in range(0, len(rows), 3)]


def _save_waves(path: Path, waves: list[np.ndarray]) -> None:
    np.savez(path, samples=np.concatenate(waves), lengths=[len(wave) for wave in waves])


def _load_waves(path: Path) -> list[np.ndarray]:
    """float32 waveforms in [-1, 1]."""
    with np.load(path) as stored:
        samples, lengths = stored["samples"].astype(np.float32) / 32768, stored["lengths"]
    return np.split(samples, np.cumsum(lengths)[:-1])
