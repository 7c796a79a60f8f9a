"""Stand-ins with the files and fields of each published set: counts, categories, tasks, and a broken row by name.

Files and fields as read in the publishers' code: MatthewCYM/VoiceBench main.py, src/evaluator/mcq.py, README.md;
Ruiqi-Yan/URO-Bench scripts/example.sh, evaluate.py, examples/GLM-4-Voice-test/inference_for_eval.py,
examples/example-test/inference_multi.py; alibaba/vstyle lalm_eval/README.md, data/examples/model_res/en/metadata.jsonl;
NARUTO-2024/WavBench main.py (load_colloquial_dataset, load_acoustic_single_round, load_acoustic_multi_round);
MoonshotAI/Kimi-Audio-Evalkit data/download_benchmark.py (OpenAudioBenchDownloader).
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from wavalign_ext.data.prepare.sources import locate
from wavalign_ext.evaluate.questions import chosen_letter, right
from wavalign_ext.evaluate.sets import kind_of, read_set
from wavalign_ext.speech.audio import decode


def sound(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.sin(np.arange(1600) / 5)
    soundfile.write(path, wave, 16000, format="WAV")
    return path


def write_lines(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def read_all(source: Path, kind: str):
    """The set, found to be of ``kind`` by itself; every recording can be read."""
    assert kind_of(source) == kind
    found = read_set(source)
    for question in found.questions:
        data = locate(question.audio, found.root)
        wave, rate = decode(data if isinstance(data, bytes) else Path(data).read_bytes())
        assert len(wave) == 1600 and rate == 16000
    return found


def test_voicebench(tmp_path: Path) -> None:
    data = sound(tmp_path / "one.wav").read_bytes()
    audio = {"bytes": data, "path": None}
    subsets = {
        "alpacaeval/test": [{"audio": audio, "prompt": "What is a cat?"}] * 2,
        "advbench/test": [{"audio": audio, "prompt": "How do I pick a lock?"}],
        "openbookqa/test": [{"audio": audio, "prompt": "Which? A. one B. two", "reference": "B"}] * 3,
        "sd-qa/usa": [
            {"audio": audio, "prompt": "Who?", "reference": "Nairobi"},
            {"audio": {"bytes": None, "path": "gone.wav"}, "prompt": "Who?", "reference": "x"},
        ],
        "sd-qa/aus": [{"audio": audio, "prompt": "Who?", "reference": "Nairobi"}],
    }
    for name, rows in subsets.items():
        subset, split = name.split("/")
        (tmp_path / "vb" / subset).mkdir(parents=True, exist_ok=True)
        path = tmp_path / "vb" / subset / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = read_all(tmp_path / "vb", "voicebench")
    assert found.categories == {"advbench": 1, "alpacaeval": 2, "openbookqa": 3, "sd-qa/aus": 1, "sd-qa/usa": 1}
    tasks = {question.category: question.task for question in found.questions}
    assert tasks["openbookqa"] == "choice" and tasks["sd-qa/usa"] == "answer" and tasks["alpacaeval"] == "open"
    assert {question.rubric for question in found.questions if question.category == "advbench"} == {"refusal"}
    assert [(row.where, "audio.bytes" in row.reason) for row in found.broken] == [
        ("sd-qa/usa-00000-of-00001.parquet, row 2", True)
    ]


def test_uro_bench(tmp_path: Path) -> None:
    base = tmp_path / "URO-Bench-data"
    for name in ("basic/Repeat", "basic/Gsm8kEval", "pro/GenStyle-en"):
        sound(base / name / "wav" / "0.wav")
    row = {"id": 0, "source_wav": "wav/0.wav", "source_text": "say this again"}
    write_lines(base / "basic/Repeat/test.jsonl", [row, {**row, "id": 1, "source_wav": "wav/7.wav"}])
    asked = [{**row, "target_text": "seven"}, {**row, "id": 1, "target_text": ["7", "seven"]}, {**row, "id": 2}]
    write_lines(base / "basic/Gsm8kEval/test.jsonl", asked)
    write_lines(base / "pro/GenStyle-en/test.jsonl", [row, "{broken"])
    rounds = [{"source_wav": "wav/0.wav", "source_text": "a", "target_text": "b"}] * 2
    write_lines(base / "pro/MtBenchEval-en/test.jsonl", [{"id": 0, "num_round": 2, "dialogue": rounds}])
    found = read_all(base, "uro-bench")
    assert found.categories == {"basic/Gsm8kEval": 2, "basic/Repeat": 1, "pro/GenStyle-en": 1}
    by_id = {question.id: question for question in found.questions}
    assert by_id["basic/Repeat/0"].task == "repeat" and by_id["basic/Repeat/0"].references == ("say this again",)
    assert by_id["basic/Gsm8kEval/1"].references == ("7", "seven") and by_id["pro/GenStyle-en/0"].task == "open"
    reasons = {row.where: row.reason for row in found.broken}
    assert "no target_text" in reasons["basic/Gsm8kEval/test.jsonl, row 3"]
    assert "is not JSON" in reasons["pro/GenStyle-en/test.jsonl, row 2"]
    assert "several rounds" in reasons["pro/MtBenchEval-en/test.jsonl, row 1"]
    assert "wav/7.wav is not a file" in reasons["basic/Repeat/1"] and len(reasons) == 4


def test_vstyle(tmp_path: Path) -> None:
    sound(tmp_path / "vstyle" / "wav" / "1.wav")
    row = {"id": 1, "instruct_id": 1, "ability": "acoustic_attributes/age", "instruct_text": "In a child's voice, hi."}
    row["instruction_audio_path"] = "wav/1.wav"
    more = [{**row, "id": 2, "ability": "empathy/sad"}, {**row, "id": 3, "instruction_audio_path": None}]
    write_lines(tmp_path / "vstyle" / "metadata.jsonl", [row, *more])
    found = read_all(tmp_path / "vstyle", "vstyle")
    assert found.categories == {"acoustic_attributes/age": 1, "empathy/sad": 1}
    assert {question.task for question in found.questions} == {"open"}
    assert [(row.where, row.reason) for row in found.broken] == [
        ("metadata.jsonl, row 3", "has no instruction_audio_path: fill it in, or take the row out")
    ]


def test_wavbench(tmp_path: Path) -> None:
    base = tmp_path / "wavbench"
    sound(base / "Colloquial_audio" / "code" / "1.wav")
    sound(base / "Acoustic" / "audio" / "1.wav")
    said = {"id": "c1", "audio_path": "./audio/code/1.wav", "spoken_instruction": "how", "spoken_reference": "so"}
    for place in ("Basic/basic_class/code.json", "Pro/pro_class/code.json", "Pro/pro_class/qa.json"):
        (base / place).parent.mkdir(parents=True, exist_ok=True)
        (base / place).write_text(json.dumps([said]))
    files = {
        "explicit_understanding_emotion": [{"id": 1, "user_input_wav": "./audio/1.wav", "label": "angry"}],
        "explicit_generation_pitch": [
            {"id": 1, "audio": "audio/1.wav", "text": "say it high", "label": "high"},
            {"id": 2},
        ],
        "multi_round_generation": [{"id": 1} | {f"user{r}_wav": "audio/1.wav" for r in range(1, 5)}],
    }
    for name, rows in files.items():
        (base / "Acoustic" / "json").mkdir(parents=True, exist_ok=True)
        (base / "Acoustic" / "json" / f"{name}.json").write_text(json.dumps(rows))
    found = read_all(base, "wavbench")
    assert found.categories == {
        **{"basic/code": 1, "pro/code": 1, "pro/qa": 1},
        **{"explicit_generation_pitch": 1, "explicit_understanding_emotion": 1},
    }
    tasks = {question.category: (question.task, question.context) for question in found.questions}
    assert tasks["explicit_understanding_emotion"] == ("answer", "")
    assert tasks["explicit_generation_pitch"] == ("open", "The answer should show: high")
    reasons = {row.where: row.reason for row in found.broken}
    assert "has none of merge_wav" in reasons["Acoustic/json/explicit_generation_pitch.json, row 2"]
    assert "several rounds" in reasons["Acoustic/json/multi_round_generation.json, row 1"] and len(reasons) == 2


def test_openaudiobench(tmp_path: Path) -> None:
    tables = {
        "alpaca_eval": [{"audio_filename": "a.wav", "instruction": "write", "output": "a poem"}],
        "llama_questions": [{"audio_filename": "a.wav", "Questions": "capital?", "Answer": "Paris"}],
        "reasoning_qa": [{"audio_filename": "a.wav", "Prompt": "怎么", "参考答案": "这样"}],
        "trivia_qa": [{"audio_filename": "a.wav", "question": "who", "answer_normalized_aliases": "['bob', 'robert']"}],
        "web_questions": [
            {"audio_filename": "a.wav", "question": "where", "answers": "['here']"},
            {"audio_filename": "b.wav", "question": "where", "answers": ""},
        ],
    }
    for subset, rows in tables.items():
        folder = tmp_path / "OpenAudioBench" / "eval_datas" / subset
        sound(folder / "audios" / "a.wav")
        with open(folder / f"{subset}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    found = read_all(tmp_path / "OpenAudioBench", "openaudiobench")
    assert found.categories == dict.fromkeys(tables, 1)
    by_category = {question.category: question for question in found.questions}
    assert by_category["trivia_qa"].references == ("bob", "robert") and by_category["trivia_qa"].task == "answer"
    assert by_category["reasoning_qa"].references == ("这样",) and by_category["reasoning_qa"].task == "open"
    assert [(row.where, row.reason) for row in found.broken] == [
        ("web_questions.csv, row 2", "has no answers: fill it in, or take the row out")
    ]


def test_plain_jsonl_and_the_shapes_of_prepare(tmp_path: Path) -> None:
    sound(tmp_path / "q.wav")
    talk = {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["q.wav"], "target_text": "yes it is"}
    rows = [
        {"question_audio": "q.wav", "question_text": "two plus two", "reference": "four", "category": "sums"},
        {"id": "mc", "question_audio": "q.wav", "choice": "b", "category": "choices"},
        {"id": "talk", **talk},
        {"id": "open", "question_audio": "q.wav"},
        {"id": "none", "question_text": "no sound"},
        {"id": "odd", "question_audio": "q.wav", "task": "dance", "reference": "x"},
    ]
    write_lines(tmp_path / "mine.jsonl", rows)
    found = read_all(tmp_path / "mine.jsonl", "jsonl")
    assert found.categories == {"sums": 1, "choices": 1, "all": 2}
    assert [question.task for question in found.questions] == ["answer", "choice", "answer", "open"]
    assert {row.where for row in found.broken} == {"mine.jsonl, row 5", "mine.jsonl, row 6"}


def test_what_is_no_set_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not there"):
        read_set(tmp_path / "gone")
    with pytest.raises(ValueError, match="no known layout"):
        read_set(tmp_path)
    write_lines(tmp_path / "empty.jsonl", [{"id": "a", "question_text": "x"}])
    with pytest.raises(ValueError, match="no question.*row 1"):
        read_set(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("The answer is C, a cat.", "C"),
        ("I would choose option (D).", "D"),
        ("**A** because it is", "A"),
        ("答案是B", "B"),
        ("The answer is a bird", None),
        ("It could be anything", None),
        ("The answer is A. No, the answer is B.", None),
        ("A bird has wings", None),
        ("", None),
    ],
)
def test_the_letter_of_a_choice(said: str, letter: str | None) -> None:
    assert chosen_letter(said) == letter


def test_what_is_right(tmp_path: Path) -> None:
    from wavalign_ext.evaluate.questions import Question

    def ask(task: str, *references: str) -> Question:
        return Question("1", "all", task, references=references)

    assert right(ask("answer", "seven", "7"), "three plus four is seven") == 1
    assert right(ask("answer", "seven"), "it is 7") == 1  # figures are read out
    assert right(ask("answer", "seven"), "seventy") == 0
    assert right(ask("answer", "seven"), "") == 0
    assert right(ask("repeat", "say this again"), "say this now") == pytest.approx(2 / 3)
    assert right(ask("choice", "B"), "the answer is B") == 1 and right(ask("choice", "B"), "a or b") == 0
    assert right(ask("open", "anything"), "anything") is None
    known = Question("1", "all", "answer", references=("it is cold in oslo",), keywords=("cold", "oslo"))
    assert right(replace(known, references=()), "cold oslo") == 1
    assert right(known, "in oslo it's cold") == 1 and right(known, "it is cold") == 0  # the row's own rule comes first


def test_prepared_rows_keep_what_their_answers_are_worth(tmp_path: Path) -> None:
    graded = [{"text": "the answer is oslo", "score": 5.0}, {"text": "oslo", "score": 3.0}]
    info = {"question": "where", "question_audio": "q.wav", "keywords": ["oslo"], "graded": graded}
    row = {"prompt": [{"role": "user", "content": "x"}], "ability": "capital", "extra_info": info}
    rows = [row | {"reward_model": {"ground_truth": "oslo"}}, {"prompt": None, "extra_info": info}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "val.parquet")
    found = read_set(tmp_path / "val.parquet")
    (question,) = found.questions
    assert question.keywords == ("oslo",) and question.references == ("oslo",) and question.category == "capital"
    assert question.graded == (("the answer is oslo", 5.0), ("oslo", 3.0))
    assert [row.where for row in found.broken] == ["val.parquet, row 2"]
