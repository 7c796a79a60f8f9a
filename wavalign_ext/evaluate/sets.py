"""Sets of spoken questions, read from a local folder or file as their publishers lay them out.

What their files and fields are called is from their own code: VoiceBench ``main.py``, ``src/evaluator``
(MatthewCYM); URO-Bench ``scripts/example.sh``, ``evaluate.py``, ``examples/GLM-4-Voice-test/inference_for_eval.py``
(Ruiqi-Yan); VStyle, once called VoiceGenEval, ``lalm_eval/README.md``, ``lalm_eval/gemini_eval.py`` (alibaba); WavBench
``main.py``, ``src/evaluator`` (NARUTO-2024); OpenAudioBench as ``data/download_benchmark.py`` of
MoonshotAI/Kimi-Audio-Evalkit reads it.
"""

import ast
import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wavalign_ext.data.pairs.candidates import Broken
from wavalign_ext.data.prepare.messages import SampleError, make_turns
from wavalign_ext.data.prepare.shapes import as_ours
from wavalign_ext.evaluate.questions import ANSWER, CHOICE, OPEN, REPEAT, RUBRIC_REFUSAL, TASKS, Question
from wavalign_ext.evaluate.rows import Found, Row, RowError, id_of, json_rows, made, needed, rows, text_of, texts_of
from wavalign_ext.rewards.answer import graded_of, keywords_of

ROUNDS = "has several rounds: only questions of one round are asked"


@dataclass
class QuestionSet:
    """``root`` is what the questions' paths are relative to; ``broken`` are rows that cannot be asked, and why."""

    name: str
    kind: str
    root: Path
    questions: list[Question] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)

    @property
    def categories(self) -> dict[str, int]:
        """How many questions each category has, in the set's order."""
        counts: dict[str, int] = {}
        for question in self.questions:
            counts[question.category] = counts.get(question.category, 0) + 1
        return counts


def read_set(source: Path, kind: str = "auto", root: Path | None = None) -> QuestionSet:
    """The questions of a folder or file; ``kind`` is one of :data:`FORMATS`, or "auto".

    Args:
        root: of the recordings, where it is not the folder that the format says.

    Raises:
        ValueError: nothing of that kind is there, or it has no question that can be asked.
    """
    if not source.exists():
        raise ValueError(f"--set={str(source)!r} is not there: give a folder or a file")
    kind = kind_of(source) if kind == "auto" else kind
    if kind not in FORMATS:
        raise ValueError(f"--format={kind!r} is not known: one of auto, {', '.join(FORMATS)}")
    found = QuestionSet(source.stem or source.name, kind, root or (source if source.is_dir() else source.parent))
    seen: set[str] = set()
    for item in FORMATS[kind](source):
        if isinstance(item, Broken):
            found.broken.append(item)
        elif item.id in seen:
            found.broken.append(Broken(item.id, "this id is there twice: the first one is asked"))
        elif not item.prompt and (missing := _missing_file(item.audio, found.root)):
            found.broken.append(Broken(item.id, f"{missing} is not a file: give the recordings with the questions"))
        else:
            seen.add(item.id)
            found.questions.append(item)
    if not found.questions:
        why = f"; the first row: {found.broken[0].where}: {found.broken[0].reason}" if found.broken else ""
        raise ValueError(f"--set={str(source)!r} has no question that --format {kind} can read{why}")
    return found


def kind_of(source: Path) -> str:
    """The format by the files that are there. Raises ValueError: none is recognised."""
    if source.is_file() and source.suffix in (".jsonl", ".json"):
        first = next((row for _, row in json_rows(source) if isinstance(row, Mapping)), {})
        return "vstyle" if "ability" in first and "instruct_text" in first else "jsonl"
    if source.is_file() and source.suffix == ".parquet":
        import pyarrow.parquet

        return "voicebench" if "audio" in pyarrow.parquet.read_schema(source).names else "prepared"
    marks = {
        "wavbench": ("Basic/basic_class", "Pro/pro_class", "Acoustic/json"),
        "openaudiobench": ("eval_datas",),
        "uro-bench": ("basic", "pro"),
        "vstyle": ("metadata.jsonl",),
    }
    for kind, places in marks.items():
        if any((source / place).exists() for place in places):
            return kind
    if any(source.glob("*/*.csv")) and any(source.glob("*/audios")):
        return "openaudiobench"
    if any(source.rglob("*.parquet")):
        return "voicebench"
    raise ValueError(f"--set={str(source)!r} is of no known layout: say --format ({', '.join(FORMATS)})")


def _missing_file(audio: Any, root: Path) -> str | None:
    return audio if isinstance(audio, str) and not (root / audio).is_file() else None


# --- our own ----------------------------------------------------------------------------------------------------


def _prepared(source: Path) -> Found:
    """Rows that ``wavalign prepare`` or ``wavalign pocket`` made; ``ability`` is the category."""
    import pyarrow.parquet

    for number, row in enumerate(pyarrow.parquet.read_table(source).to_pylist(), 1):
        info, where = row.get("extra_info") or {}, f"{source.name}, row {number}"
        prompt, truth = row.get("prompt"), (row.get("reward_model") or {}).get("ground_truth")
        if not prompt:
            yield Broken(where, "has no prompt: make the file with wavalign prepare")
            continue
        yield Question(
            id=f"row {number}",
            category=str(row.get("ability") or row.get("data_source") or source.stem),
            task=ANSWER if truth or info.get("keywords") else OPEN,
            text=info.get("question"),
            audio=info.get("question_audio"),
            references=(str(truth),) if truth else (),
            keywords=keywords_of(info.get("keywords")),
            graded=graded_of(info.get("graded")),
            prompt=tuple(prompt),
            features=tuple(row.get("heard_features") or ()),
            answer_audio=info.get("answer_audio"),
        )


def _jsonl(source: Path) -> Found:
    """Our fields or a shape that ``wavalign prepare`` reads; ``references``, ``choice``, ``task``, ``category``."""
    for where, row in rows(source):
        if isinstance(row, Broken):
            yield row
            continue
        yield from made(where, _own_question, where, row)


def _own_question(where: str, row: Row) -> Question:
    try:
        ours = as_ours(row, "auto")
        values = {name: ours.get(name) for name in ("messages", "audios", "question_audio", "question_text")}
        turns = make_turns(values | {"history_text": None})
    except SampleError as error:
        raise RowError(str(error)) from error
    asked = [turn for turn in turns if turn.role == "user"]
    if len(asked) != 1:
        raise RowError(ROUNDS)
    clips = asked[0].clips
    if len(clips) != 1:
        raise RowError(f"has {len(clips)} recordings in its question: give one")
    text = text_of(row, "question_text", "question", "prompt", "source_text") or asked[0].text or None
    choice = text_of(row, "choice")
    references = (choice,) if choice else texts_of(row, "references", "reference", "target_text", "answer")
    keywords = texts_of(row, "keywords")
    task = text_of(row, "task") or (CHOICE if choice else ANSWER if references or keywords else OPEN)
    if task not in TASKS:
        raise RowError(f"task={task!r} is not known: one of {', '.join(TASKS)}")
    category = text_of(row, "category", "task_type", "data_source") or "all"
    answer = row.get("target_audio") or row.get("answer_audio")
    answer = answer if isinstance(answer, str) else None
    context = asked[0].text if text != asked[0].text else ""
    return Question(
        id_of(row, where),
        category,
        task,
        text,
        clips[0].source,
        references,
        context=context,
        keywords=keywords,
        answer_audio=answer,
    )


# --- VoiceBench -------------------------------------------------------------------------------------------------

VOICEBENCH_TASKS = {"openbookqa": CHOICE, "mmsu": CHOICE, "sd-qa": ANSWER, "bbh": ANSWER}


def _voicebench(source: Path) -> Found:
    """``SUBSET/SPLIT-….parquet`` of ``audio``, ``prompt``, for some ``reference``; splits are regions or topics."""
    import pyarrow.parquet

    for file in [source] if source.is_file() else sorted(source.rglob("*.parquet")):
        subset, split = file.parent.name, file.stem.split("-0")[0]
        category = subset if split == "test" else f"{subset}/{split}"
        for number, row in enumerate(pyarrow.parquet.read_table(file).to_pylist(), 1):
            where = f"{subset}/{file.name}, row {number}"
            yield from made(where, _voicebench_question, f"{category}/{number}", category, subset, row)


def _voicebench_question(id: str, category: str, subset: str, row: Row) -> Question:
    audio = row.get("audio")
    if row.get("turns") or isinstance(row.get("audio1"), Mapping):
        raise RowError(ROUNDS)
    if not isinstance(audio, Mapping) or audio.get("bytes") is None:
        raise RowError("has no audio.bytes: download the data set with its recordings")
    task = VOICEBENCH_TASKS.get(subset, OPEN)
    references = texts_of(row, "reference")
    if task != OPEN and not references:
        raise RowError(f"has no reference, which {subset} is scored by")
    rubric = RUBRIC_REFUSAL if subset == "advbench" else ""
    return Question(id, category, task, text_of(row, "prompt"), audio["bytes"], references, rubric)


# --- URO-Bench --------------------------------------------------------------------------------------------------

# What evaluate.py calls result_repeat_… and result_qa; all others go to a judge, with the reference where there is one.
URO_REPEAT = ("Repeat", "Repeat-zh")
URO_ANSWER = (
    *("GaokaoEval", "Gsm8kEval", "MLC", "HSK5-zh", "SQuAD-zh", "APE-zh", "MLC-zh", "OpenbookQA-zh"),
    *("ClothoEval-en", "MuChoEval-en", "MLCpro-en", "MLCpro-zh"),
)


def _uro_bench(source: Path) -> Found:
    """``basic|pro/DATASET/test.jsonl`` of ``id``, ``source_wav`` (beside it), ``source_text``, ``target_text``."""
    files = [source] if source.is_file() else sorted([*source.glob("*/*/test.jsonl"), *source.glob("*/test.jsonl")])
    base = source if source.is_dir() else source.parent
    for file in files:
        category = file.parent.relative_to(base).as_posix()
        for where, row in rows(file, category):
            if isinstance(row, Broken):
                yield row
                continue
            yield from made(where, _uro_question, category, file.parent, base, where, row)


def _uro_question(category: str, folder: Path, base: Path, where: str, row: Row) -> Question:
    if isinstance(row.get("dialogue"), list):
        raise RowError(ROUNDS)
    wav = needed(row, "source_wav")
    name, text = folder.name, text_of(row, "source_text")
    task = REPEAT if name in URO_REPEAT else ANSWER if name in URO_ANSWER else OPEN
    references = texts_of(row, "target_text") or ((text,) if task == REPEAT and text else ())
    if task != OPEN and not references:
        raise RowError(f"has no target_text, which {name} is scored by")
    rubric = RUBRIC_REFUSAL if name.startswith("Safety") else ""
    audio = (folder / wav).relative_to(base).as_posix()
    return Question(f"{category}/{id_of(row, where)}", category, task, text, audio, references, rubric)


# --- VStyle, VoiceGenEval -----------------------------------------------------------------------------------------


def _vstyle(source: Path) -> Found:
    """``metadata.jsonl`` of ``id``, ``ability`` (task/attribute), ``instruct_text``, ``instruction_audio_path``."""
    for where, row in rows(source / "metadata.jsonl" if source.is_dir() else source):
        if isinstance(row, Broken):
            yield row
            continue
        yield from made(where, _vstyle_question, row)


def _vstyle_question(row: Row) -> Question:
    audio, ability = needed(row, "instruction_audio_path"), needed(row, "ability")
    return Question(needed(row, "id"), ability, OPEN, needed(row, "instruct_text"), audio)


# --- WavBench ---------------------------------------------------------------------------------------------------

WAVBENCH_AUDIO = ("merge_wav", "user_input_wav", "audio", "wav_path", "audio_path")


def _wavbench(source: Path) -> Found:
    """Lists: ``Basic/basic_class``, ``Pro/pro_class`` (recordings in ``Colloquial_audio``), ``Acoustic/json``."""
    for level, folder in (("basic", "Basic/basic_class"), ("pro", "Pro/pro_class")):
        for file in sorted((source / folder).glob("*.json")):
            for where, row in rows(file, folder):
                if isinstance(row, Broken):
                    yield row
                else:
                    yield from made(where, _wavbench_colloquial, f"{level}/{file.stem}", where, row)
    for file in sorted((source / "Acoustic" / "json").glob("*.json")):
        for where, row in rows(file, "Acoustic/json"):
            if isinstance(row, Broken):
                yield row
            else:
                yield from made(where, _wavbench_acoustic, file.stem, where, row)


def _wavbench_colloquial(category: str, where: str, row: Row) -> Question:
    name = needed(row, "audio_path")
    audio = f"Colloquial_audio/{name.removeprefix('./audio/').removeprefix('./')}"
    text, references = text_of(row, "spoken_instruction", "text"), texts_of(row, "spoken_reference")
    return Question(f"{category}/{id_of(row, where)}", category, OPEN, text, audio, references)


def _wavbench_acoustic(category: str, where: str, row: Row) -> Question:
    if "user1_wav" in row:
        raise RowError(ROUNDS)
    audio = text_of(row, *WAVBENCH_AUDIO)
    if audio is None:
        raise RowError(f"has none of {', '.join(WAVBENCH_AUDIO)}")
    label, text = text_of(row, "label"), text_of(row, "text", "User")
    understood = category.startswith("explicit_understanding")
    task, references = (ANSWER, (label,)) if understood and label else (OPEN, ())
    context = f"The answer should show: {label}" if label and not understood else ""
    audio = f"Acoustic/{audio.removeprefix('./')}"
    return Question(f"{category}/{id_of(row, where)}", category, task, text, audio, references, context=context)


# --- OpenAudioBench -----------------------------------------------------------------------------------------------

# subset: (column of the question, of the answer, task)
OPENAUDIOBENCH = {
    "alpaca_eval": ("instruction", "output", OPEN),
    "llama_questions": ("Questions", "Answer", ANSWER),
    "reasoning_qa": ("Prompt", "参考答案", OPEN),
    "trivia_qa": ("question", "answer_normalized_aliases", ANSWER),
    "web_questions": ("question", "answers", ANSWER),
}


def _openaudiobench(source: Path) -> Found:
    """``eval_datas/SUBSET/SUBSET.csv`` with ``audio_filename``, a file of ``SUBSET/audios``."""
    base = source / "eval_datas" if (source / "eval_datas").is_dir() else source
    for subset, columns in OPENAUDIOBENCH.items():
        file = base / subset / f"{subset}.csv"
        if not file.is_file():
            continue
        with open(file, encoding="utf-8-sig", newline="") as opened:
            for number, row in enumerate(csv.DictReader(opened), 1):
                audios = (base / subset / "audios").relative_to(source).as_posix()
                yield from made(f"{file.name}, row {number}", _openaudiobench_question, subset, columns, audios, row)


def _openaudiobench_question(subset: str, columns: tuple[str, str, str], audios: str, row: Row) -> Question:
    asked, answered, task = columns
    name, references = needed(row, "audio_filename"), _listed(needed(row, answered))
    return Question(f"{subset}/{name}", subset, task, needed(row, asked), f"{audios}/{name}", references)


def _listed(text: str) -> tuple[str, ...]:
    """A cell with a list of right answers, as pandas writes one, or with one answer."""
    try:
        found = ast.literal_eval(text) if text.startswith("[") else text
    except (ValueError, SyntaxError):
        found = text
    return tuple(map(str, found)) if isinstance(found, list) else (text,)


FORMATS: dict[str, Callable[[Path], Found]] = {
    "prepared": _prepared,
    "jsonl": _jsonl,
    "voicebench": _voicebench,
    "uro-bench": _uro_bench,
    "vstyle": _vstyle,
    "wavbench": _wavbench,
    "openaudiobench": _openaudiobench,
}
