"""Builds the asset folder: voices, codebooks, tokenizer, data, warm start, report. Stages that are done stay done."""

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

from wavalign_ext.pocket import DATA_SOURCE, SAMPLE_RATE, pocket_dir
from wavalign_ext.pocket.domain import Question, items, questions

SEED = 0
TRAIN_ROWS, VAL_ROWS = 1024, 96
WARM, RL, HELD_OUT, ANSWER = "warm", "rl", "held_out", "answer"
MEASURED_ANSWERS, MEASURED_QUESTIONS, CHECKED_QUESTIONS = 24, 96, 160


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
        print(f"wavalign: building the pocket model in {out} (once; about 5 minutes on 2 cores)", flush=True)
        # Read when torch is first imported: threads that spin while they wait make a shared machine ten times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        work.mkdir(exist_ok=True)
        builder = _Builder(work)
        for stage in (builder.speak, builder.fit, builder.encode, builder.warm_start, builder.measure):
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
        """Every question by every voice, every answer by the answer voice; kept for the next stages only."""
        from wavalign_ext.pocket.voices import ANSWER_VOICE, VOICES, speak

        jobs = [
            (voice, f"{q.text}?") for voice in VOICES for q in questions() if voice.role == HELD_OUT or not q.held_out
        ]
        spoken = speak(jobs, "questions")
        answers = speak([(ANSWER_VOICE, f"{item.answer}.") for item in items()], "answers")
        _save_waves(self.work / "questions.npz", spoken)
        _save_waves(self.work / "answers.npz", answers)
        seconds = sum(map(len, spoken + answers)) / SAMPLE_RATE
        return {"voices": len(VOICES), "utterances": len(spoken) + len(answers), "speech_seconds": round(seconds)}

    def utterances(self) -> list[tuple[Any, Question, np.ndarray]]:
        """(voice, question, waveform) of every spoken question."""
        from wavalign_ext.pocket.voices import VOICES

        pairs = [(voice, q) for voice in VOICES for q in questions() if voice.role == HELD_OUT or not q.held_out]
        waves = _load_waves(self.work / "questions.npz")
        return [(voice, q, wave) for (voice, q), wave in zip(pairs, waves, strict=True)]

    # --- codebooks ------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, Any]:
        """The two codebooks, and the word error rate of a round trip through the answer codec."""
        from wavalign_ext.pocket.fit import fit_mel_vq, fit_units, round_trip_wer
        from wavalign_ext.speech.asr import load_recognizer, write_language_model
        from wavalign_ext.speech.codecs import load_codec
        from wavalign_ext.speech.codecs.base import SpeechCodec

        heard = [wave for voice, _, wave in self.utterances() if voice.role in (WARM, RL)]
        random.Random(SEED).shuffle(heard)
        fit_units(heard[:1200], self.work / "units", SEED)
        answers = _load_waves(self.work / "answers.npz")
        fit_mel_vq(answers, self.work / "codec", SEED)
        write_language_model([item.answer for item in items()], self.work / "asr" / "answers.arpa")

        # A second codec that never saw the measured answers tells how much of the first one's quality is memory.
        chosen = random.Random(SEED).sample(range(len(answers)), MEASURED_ANSWERS)
        others = [wave for i, wave in enumerate(answers) if i not in chosen]
        fit_mel_vq(others, self.work / "codec_of_others", SEED)
        codecs: dict[str, SpeechCodec | None] = {"recorded": None}
        for label, folder in (("round_trip", "codec"), ("round_trip_unseen", "codec_of_others")):
            codecs[label] = load_codec({"type": "mel_vq", "path": self.work / folder})
        waves, texts = [answers[i] for i in chosen], [items()[i].answer for i in chosen]
        numbers: dict[str, Any] = {"utterances": MEASURED_ANSWERS}
        language_model = self.work / "asr" / "answers.arpa"
        # One thread: two wait for each other as soon as anything else wants a core.
        for name, options in (("pocketsphinx", {"lm": language_model}), ("whisper", {"threads": 1})):
            recognizer = load_recognizer({"type": name, **options})
            for label, codec in codecs.items():
                numbers[f"{name}_wer_{label}"] = round(round_trip_wer(codec, waves, texts, recognizer), 3)
        shutil.rmtree(self.work / "codec_of_others")
        return numbers

    # --- data -----------------------------------------------------------------------------------------------------

    def encode(self) -> dict[str, Any]:
        """Tokenizer, verl's parquet files with their audio, and the examples of the warm start."""
        import torch

        from wavalign_ext.pocket.tokens import build_tokenizer
        from wavalign_ext.speech.codecs import load_codec
        from wavalign_ext.speech.layout import load_layout

        layout = load_layout("pocket")
        tokenizer = build_tokenizer([text for q in questions() for text in (q.text, q.answer)], layout)
        tokenizer.save_pretrained(self.work / "model")
        units = load_codec({"type": "units", "path": self.work / "units"})
        codec = load_codec({"type": "mel_vq", "path": self.work / "codec"})
        answers = [codec.encode(wave) for wave in _load_waves(self.work / "answers.npz")]
        utterances = tqdm(self.utterances(), "questions to units", unit="utt")
        spoken = [(voice, q, wave, units.encode(wave)) for voice, q, wave in utterances]
        torch.save([(voice.role, q, codes) for voice, q, _, codes in spoken], self.work / "spoken.pt")
        torch.save(answers, self.work / "answer_codes.pt")

        rng = random.Random(SEED)
        train = balanced([s for s in spoken if s[0].role == RL], TRAIN_ROWS, rng)
        known = balanced([s for s in spoken if s[0].role == HELD_OUT and not s[1].held_out], VAL_ROWS * 3 // 4, rng)
        new = balanced([s for s in spoken if s[0].role == HELD_OUT and s[1].held_out], VAL_ROWS // 4, rng)
        val = [row for three, one in zip(_in_threes(known), new, strict=True) for row in (*three, one)]
        self._write_rows("train", train, answers, 0)
        self._write_rows("val", val, answers, len(train))
        self._write_answers()
        return {"train_rows": len(train), "val_rows": len(val), "vocabulary": len(tokenizer)}

    def _write_rows(self, split: str, spoken: list[tuple], answers: list[list[int]], first: int) -> None:
        import pandas

        from wavalign_ext.speech.layout import TokenRange, load_layout

        heard = load_layout("pocket").user_speech
        assert isinstance(heard, TokenRange) and heard.pattern is not None
        rows = []
        for number, (voice, q, wave, codes) in enumerate(spoken):
            audio = f"audio/{split}/{number}.flac"
            _write_audio(self.work / audio, wave)
            info = {
                "index": first + number,
                "split": split,
                "kind": q.kind,
                "voice": voice.name,
                "new_voice": voice.role == HELD_OUT,
                "new_phrasing": q.held_out,
                "question": q.text,
                "question_audio": audio,
                "answer_audio": f"audio/answer/{q.item}.flac",
            }
            content = "".join(map(heard.pattern.format, codes))
            rows.append(
                {
                    "data_source": DATA_SOURCE,
                    "prompt": [{"role": "user", "content": content}],
                    "ability": q.kind,
                    "reward_model": {"style": "rule", "ground_truth": q.answer},
                    "target_text": q.answer,
                    "target_speech": answers[q.item],
                    "extra_info": info,
                }
            )
        (self.work / "data").mkdir(exist_ok=True)
        pandas.DataFrame(rows).to_parquet(self.work / "data" / f"{split}.parquet")

    def _write_answers(self) -> None:
        for number, wave in enumerate(_load_waves(self.work / "answers.npz")):
            _write_audio(self.work / "audio" / "answer" / f"{number}.flac", wave)

    # --- model ----------------------------------------------------------------------------------------------------

    def examples(self, role: str) -> list[Any]:
        """Questions of the voices with that role, in known phrasings, as token ids."""
        import torch
        from transformers import AutoTokenizer

        from wavalign_ext.pocket.warmstart import Example
        from wavalign_ext.speech.layout import load_layout

        tokenizer = AutoTokenizer.from_pretrained(self.work / "model")
        layout = load_layout("pocket").resolve(tokenizer)
        answers = torch.load(self.work / "answer_codes.pt", weights_only=False)
        found = []
        for voice_role, q, codes in torch.load(self.work / "spoken.pt", weights_only=False):
            if voice_role != role or q.held_out:
                continue
            message = [{"role": "user", "content": layout.user_speech_prompt(codes)}]
            prompt = tokenizer.apply_chat_template(
                message, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            text = tokenizer.encode(q.answer, add_special_tokens=False)
            found.append(Example(list(prompt), layout.target(text, answers[q.item]), q.answer, q.kind))
        return found

    def warm_start(self) -> dict[str, Any]:
        """Supervised training on the warm voices, until it answers enough of what the RL voices ask."""
        from transformers import AutoTokenizer

        from wavalign_ext.pocket.warmstart import WarmStart, accuracy, new_model, train
        from wavalign_ext.speech.layout import load_layout

        tokenizer = AutoTokenizer.from_pretrained(self.work / "model")
        layout, settings = load_layout("pocket").resolve(tokenizer), WarmStart()
        asked = balanced(self.examples(RL), CHECKED_QUESTIONS, random.Random(SEED), kind=lambda e: e.kind)
        model = new_model(len(tokenizer), layout, settings)
        history = train(
            model,
            self.examples(WARM),
            layout,
            settings,
            lambda taught: accuracy(taught, asked, layout, tokenizer, group=1)["by_kind"],
        )
        model.generation_config.eos_token_id = list(layout.eos_ids)
        model.save_pretrained(self.work / "model")
        return {"parameters": sum(p.numel() for p in model.parameters()), "checks": history}

    def measure(self) -> dict[str, Any]:
        """How often sampled answers to voices never heard are exactly right."""
        import torch
        from transformers import AutoTokenizer, Qwen2ForCausalLM

        from wavalign_ext.pocket.warmstart import accuracy
        from wavalign_ext.speech.layout import load_layout

        torch.manual_seed(SEED)
        tokenizer = AutoTokenizer.from_pretrained(self.work / "model")
        layout = load_layout("pocket").resolve(tokenizer)
        model = Qwen2ForCausalLM.from_pretrained(self.work / "model")
        chosen = balanced(self.examples(HELD_OUT), MEASURED_QUESTIONS, random.Random(SEED), kind=lambda e: e.kind)
        return {
            "at_validation": accuracy(model, chosen, layout, tokenizer, group=8),
            "at_training": accuracy(model, chosen, layout, tokenizer, temperature=1.0, top_p=1.0, group=8),
        }

    def finish(self) -> None:
        """Write the report and the layout, drop what only the build needed."""
        for name in ("questions.npz", "answers.npz", "spoken.pt", "answer_codes.pt"):
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
    start, codec = report["measure"]["at_validation"], report["fit"]
    lines = [f"pocket assets: {folder}"]
    lines += [
        f"  {name:<11}{report[name]['seconds']:>7} s" for name in ("speak", "fit", "encode", "warm_start", "measure")
    ]
    lines.append(
        f"  codec round trip, word error rate: Whisper {codec['whisper_wer_recorded']:.1%} → "
        f"{codec['whisper_wer_round_trip']:.1%}, pocketsphinx {codec['pocketsphinx_wer_round_trip']:.1%}"
    )
    lines.append(
        f"  warm start: {start['exact']:.0%} exact on new voices, {start['mixed_groups_of_4']:.0%} of groups of 4 mixed"
    )
    lines.append("  by kind: " + ", ".join(f"{kind} {share:.0%}" for kind, share in start["by_kind"].items()))
    return "\n".join(lines)


def balanced(rows: list[Any], count: int, rng: random.Random, kind: Callable[[Any], str] = lambda s: s[1].kind) -> list:
    """``count`` rows, kinds taking turns, each kind shuffled and reused when it runs out."""
    by_kind: dict[str, list[Any]] = {}
    for row in rows:
        by_kind.setdefault(kind(row), []).append(row)
    for members in by_kind.values():
        rng.shuffle(members)
    kinds = sorted(by_kind)
    turns = [(kinds[i % len(kinds)], i // len(kinds)) for i in range(count)]
    return [by_kind[name][turn % len(by_kind[name])] for name, turn in turns]


def _in_threes(rows: list[Any]) -> list[list[Any]]:
    return [rows[start : start + 3] for start in range(0, len(rows), 3)]


def _save_waves(path: Path, waves: list[np.ndarray]) -> None:
    np.savez(path, samples=np.concatenate(waves), lengths=[len(wave) for wave in waves])


def _load_waves(path: Path) -> list[np.ndarray]:
    """float32 waveforms in [-1, 1]."""
    with np.load(path) as stored:
        samples, lengths = stored["samples"].astype(np.float32) / 32768, stored["lengths"]
    return np.split(samples, np.cumsum(lengths)[:-1])


def _write_audio(path: Path, wave: np.ndarray) -> None:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, SAMPLE_RATE)
