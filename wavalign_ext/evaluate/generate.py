"""Answers of a model to questions, one for each seed: drawn by vLLM, kept on disk, and gone on with after a stop."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wavalign_ext.data.pairs.candidates import Broken
from wavalign_ext.data.prepare.audio import Limits, clean
from wavalign_ext.data.prepare.dialogue import Sample
from wavalign_ext.data.prepare.hear import FOLDER, Ears, load_coder
from wavalign_ext.data.prepare.messages import HEARD, Clip, SampleError, Turn
from wavalign_ext.data.prepare.rows import RowMaker
from wavalign_ext.data.prepare.setup import Setup, assemble
from wavalign_ext.data.prepare.sources import locate
from wavalign_ext.evaluate.models import SpokenModel
from wavalign_ext.evaluate.questions import Question
from wavalign_ext.schema import one_line
from wavalign_ext.speech.audio import decode
from wavalign_ext.speech.chat import prompt_ids
from wavalign_ext.speech.layout import PARALLEL, load_layout

ALONE = 5  # questions that are asked one at a time, for the latency
AT_ONCE = 64


@dataclass(frozen=True)
class Answer:
    """What a model said: ``ids`` of its tokens. ``first_audio_s``: seconds to the first audio token, asked alone."""

    question: str
    seed: int
    ids: list[int]
    first_audio_s: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Drawn:
    """Answers by (question, seed); seconds to the first audio token by question; what could not be asked, and why."""

    answers: dict[tuple[str, int], Answer]
    first_audio_s: dict[str, float]
    refused: list[Broken]


class Prompter:
    """Questions as a model's prompts. Raises ValueError where layout, tokenizer and codecs do not belong together."""

    def __init__(self, model: SpokenModel, features: Path) -> None:
        from transformers import AutoTokenizer

        self.model, self.voice, self.features = model, model.voice, features
        tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
        voice = self.voice
        self.setup: Setup = assemble(
            load_layout(voice.layout), tokenizer, voice.codec, voice.input_codec, voice.encoder
        )
        self.layout, self.tokenizer = self.setup.layout, tokenizer
        self._rows, self._limits, self._coder = RowMaker(self.setup), Limits(), None

    def __call__(self, question: Question, root: Path) -> tuple[list[int], list[str]]:
        """(token ids of the prompt, feature files).

        Raises:
            ValueError: a recording that cannot be read or heard, or a prompt that is too long.
        """
        if question.prompt:
            messages: Sequence[Mapping[str, Any]] = question.prompt
            files = [str(root / name) for name in question.features]
            self.layout.check_prompt(messages, self.tokenizer, question.id)
        else:
            messages, files = self._encoded(question, root)
        ids = self.layout.prompt(prompt_ids(self.tokenizer, messages, **self.voice.chat))
        if len(ids) > self.voice.longest_prompt:
            longest = self.voice.longest_prompt
            raise ValueError(f"the prompt has {len(ids)} tokens, the model takes {longest} (data.max_prompt_length)")
        return ids, files

    def _encoded(self, question: Question, root: Path) -> tuple[list[dict[str, str]], list[str]]:
        clip = Clip("audio", question.audio, HEARD)
        if self._coder is None:
            self._coder = load_coder(self.setup.specs[HEARD])
        found = locate(question.audio, root)
        data = found if isinstance(found, bytes) else Path(found).read_bytes()
        wave = clean(*decode(data, self._limits.longest_s), self._coder.sample_rate, self._limits)
        import numpy as np

        codes, files = np.array(self._coder.encode(wave)), []
        if isinstance(self._coder, Ears):
            key = hashlib.sha256(self._coder.fingerprint().encode() + wave.tobytes()).hexdigest()
            path = self.features / FOLDER / key[:2] / f"{key}.safetensors"
            self._coder.save(path)
            files = [str(path)]
        sample = Sample((Turn("user", (clip,)),), "", (), question.text, question.category)
        return self._rows.prompt(sample, {"audio": codes}), files


class Engine:
    """A worker process that answers; use it as a context. ``log`` is where what vLLM says goes."""

    def __init__(self, model: SpokenModel, prompter: Prompter, log: Path) -> None:
        voice, layout = model.voice, prompter.layout
        cpu = _on_cpu()
        self._settings = {
            "folder": str(model.folder),
            "dtype": "float32" if cpu and voice.dtype == "auto" else voice.dtype,
            "longest": voice.longest_prompt + voice.longest_answer,
            "at_once": AT_ONCE,
            "parallel": layout.layout.type == PARALLEL,
            "hears": layout.layout.encoder is not None,
            "constrained": voice.constrained,
            "layout": voice.layout if isinstance(voice.layout, dict) else {"name": voice.layout},
            "eos": list(layout.eos_ids),
            "cpu": cpu,
        }
        self._name, self._log, self._cpu = model.name, log, cpu
        self.sampling = {**voice.sampling, "max_tokens": voice.longest_answer}

    def __enter__(self) -> "Engine":
        told = {"VERL_ENGINE_VENDOR": "wavalign", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        if self._cpu:
            told |= {"VERL_PLATFORM": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
            told |= {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")}
            told |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wavalign_ext.evaluate.worker"],
                **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True},
                env=os.environ | told,
            )
        self._send(self._settings)
        next(self._lines())  # ready
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, key: str, ids: Sequence[int], files: Sequence[str], seed: int, live: bool = False) -> None:
        """Begin a request; its answer comes out of :meth:`told`."""
        sampling = {**self.sampling, "seed": seed}
        self._send({"key": key, "ids": list(ids), "features": list(files), "sampling": sampling, "live": live})

    def told(self) -> Iterator[dict[str, Any]]:
        """Lines as the worker sends them. Raises ValueError: it has ended, with the place of its log."""
        return self._lines()

    def _send(self, line: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(line, default=str) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ValueError(self._ended()) from error

    def _lines(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            yield json.loads(line)
        raise ValueError(self._ended())

    def _ended(self) -> str:
        return f"the engine of {self._name} ended before it had answered: see {self._log}"


def answer_seed(question: str, seed: int) -> int:
    """31 bits for one answer: the same for every model, so that pairs of models share what chance can be shared."""
    return int.from_bytes(hashlib.sha256(f"{seed},{question}".encode()).digest()[:4], "big") >> 1


def generate(
    model: SpokenModel,
    prompter: Prompter,
    questions: Sequence[Question],
    root: Path,
    seeds: int,
    out: Path,
    say: Callable[[str], None] = print,
) -> Drawn:
    """One answer for each question and seed, and the latency of the first few questions.

    What ``out``/answers has of this model is not drawn again. An answer is written when it is whole, so that a stop
    costs only those under way.
    """
    prompts, refused = _prompts(prompter, questions, root)
    file = out / "answers" / f"{model.key}.jsonl"
    kept = {(answer.question, answer.seed): answer for answer in _read(file, prompts)}
    wanted = [(key, seed) for seed in range(seeds) for key in prompts if (key, seed) not in kept]
    timed = [key for key in list(prompts)[:ALONE] if (key, -1) not in kept]
    if wanted or timed:
        say(f"{model.name}: {len(kept)} answers are there, {len(wanted)} to draw")
        file.parent.mkdir(parents=True, exist_ok=True)
        with Engine(model, prompter, out / "logs" / f"{model.key}.log") as engine, open(file, "a") as kept_file:
            for answer, digest in _drawn(engine, prompter, prompts, wanted, timed):
                kept[answer.question, answer.seed] = answer
                kept_file.write(json.dumps({"prompt": digest, **asdict(answer)}) + "\n")
                kept_file.flush()
    refused += [Broken(key, answer.error) for (key, _), answer in kept.items() if answer.error]
    whole = {key: answer for key, answer in kept.items() if not answer.error}
    return Drawn(
        {key: whole[key] for key in ((name, seed) for name in prompts for seed in range(seeds)) if key in whole},
        {key: answer.first_audio_s for (key, seed), answer in whole.items() if seed < 0 and answer.first_audio_s},
        refused,
    )


def _prompts(
    prompter: Prompter, questions: Sequence[Question], root: Path
) -> tuple[dict[str, tuple[list[int], list[str], str]], list[Broken]]:
    """(ids, feature files, digest) by question."""
    found, refused = {}, []
    for question in questions:
        try:
            ids, files = prompter(question, root)
        except (ValueError, OSError, SampleError) as error:
            refused.append(Broken(question.id, one_line(str(error))))
            continue
        digest = hashlib.sha256(json.dumps([ids, files]).encode()).hexdigest()[:16]
        found[question.id] = (ids, files, digest)
    return found, refused


def _read(file: Path, prompts: Mapping[str, tuple[Any, Any, str]]) -> Iterator[Answer]:
    """Answers to these prompts; a line that a stop has cut is none."""
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        digest = row.pop("prompt", None)
        if row.get("question") in prompts and prompts[row["question"]][2] == digest:
            yield Answer(**row)


def _drawn(
    engine: Engine, prompter: Prompter, prompts: Mapping[str, Any], wanted: Sequence[Any], timed: Sequence[str]
) -> Iterator[tuple[Answer, str]]:
    """(answer, digest of its prompt): first those that are asked alone, with seed −1, then all the others together."""
    for number, key in enumerate(timed):
        ids, files, digest = prompts[key]
        if number == 0:  # the first request pays for what an engine sets up
            _alone(engine, prompter, ids, files)
        said, first = _alone(engine, prompter, ids, files)
        yield Answer(key, -1, said, first), digest
    requests = {f"{seed}/{key}": (key, seed) for key, seed in wanted}
    for name, (key, seed) in requests.items():
        ids, files, _ = prompts[key]
        engine.ask(name, ids, files, answer_seed(key, seed))
    lines = engine.told()
    for _ in requests:
        line = next(lines)
        key, seed = requests[line["key"]]
        yield Answer(key, seed, line["ids"], error=line.get("error")), prompts[key][2]


def _alone(engine: Engine, prompter: Prompter, ids: Any, files: Any) -> tuple[list[int], float | None]:
    """One answer, and the seconds until its first audio token."""
    began, said, first = time.monotonic(), [], None
    engine.ask("alone", ids, files, 0, live=True)
    for line in engine.told():
        said += line["ids"]
        if first is None and prompter.layout.split(said).codes:
            first = time.monotonic() - began
        if line["done"]:
            break
    return said, first


def _on_cpu() -> bool:
    from wavalign_ext.integration.hardware import accelerator_visible

    return os.environ.get("VERL_PLATFORM") == "cpu" or not accelerator_visible()
