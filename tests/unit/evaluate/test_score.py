"""Prompts, measures and what is kept, on a small layout with fitted codecs; the judge answers by a rule."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world
import soundfile

from wavalign_ext.evaluate import cost, score
from wavalign_ext.evaluate.generate import Answer, Prompter, answer_seed
from wavalign_ext.evaluate.models import SpokenModel, Voice, load_models
from wavalign_ext.evaluate.questions import Question
from wavalign_ext.evaluate.sets import QuestionSet
from wavalign_ext.evaluate.voice import pitch_spread

RATE = small_world.RATE


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> small_world.World:
    return small_world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def model(world: small_world.World) -> SpokenModel:
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": -1}
    voice = Voice(str(world.layout), world.codec, world.user_speech, None, sampling, 96, 160)
    return SpokenModel("small", world.folder / "model", voice)


def tone(path: Path, hz: float = 200.0, seconds: float = 1.0) -> Path:
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * np.arange(int(RATE * seconds)) / RATE), RATE)
    return path


def scorer(model: SpokenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> score.Scorer:
    """One without models of speech."""

    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError("no package")

    monkeypatch.setattr(score, "load_recognizer", missing)
    real = score.build_term
    monkeypatch.setattr(score, "build_term", lambda kind, *a: missing() if kind != "judge" else real(kind, *a))
    return score.Scorer(model, Prompter(model, tmp_path), tmp_path, tmp_path, **more)


def said(one: score.Scorer, text: str, codes: list[int], ended: bool = True) -> list[int]:
    ids = one.prompter.layout.target(one.prompter.tokenizer.encode(text, add_special_tokens=False), codes)
    return ids if ended else ids[:-1]


def test_a_recording_becomes_a_prompt_and_a_long_one_is_refused(model: SpokenModel, tmp_path: Path) -> None:
    prompter = Prompter(model, tmp_path)
    tone(tmp_path / "q.wav")
    ids, files = prompter(Question("1", "all", "open", audio="q.wav"), tmp_path)
    heard = range(prompter.layout.user_speech_start, prompter.layout.user_speech_end)
    assert sum(i in heard for i in ids) > 10 and files == []
    tone(tmp_path / "long.wav", seconds=20)
    with pytest.raises(ValueError, match="the model takes 160"):
        prompter(Question("2", "all", "open", audio="long.wav"), tmp_path)
    with pytest.raises((ValueError, OSError)):
        prompter(Question("3", "all", "open", audio="gone.wav"), tmp_path)


def test_seeds_are_of_the_question_and_not_of_the_model() -> None:
    assert answer_seed("a", 0) == answer_seed("a", 0) != answer_seed("a", 1)
    assert answer_seed("a", 0) != answer_seed("b", 0) and 0 <= answer_seed("a", 0) < 2**31


def test_answers_are_measured_once(model: SpokenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scorer(model, tmp_path, monkeypatch)
    questions = {"1": Question("1", "all", "answer", "two plus two", references=("four",))}
    codes = [1, 2, 3, 4] * 6
    answers = {
        ("1", 0): Answer("1", 0, said(one, "two plus two is four", codes)),
        ("1", 1): Answer("1", 1, said(one, "five", codes, ended=False)),
        ("1", 2): Answer("1", 2, []),
    }
    rows = one.score(questions, answers)
    values = [row["values"] for row in rows]
    assert [row["right"] for row in values] == [1.0, 0.0, 0.0]
    assert [row["truncated"] for row in values] == [0.0, 1.0, 1.0] and [row["silent"] for row in values] == [0, 0, 1]
    wave, rate = soundfile.read(tmp_path / rows[0]["wav"])
    assert values[0]["seconds"] == pytest.approx(len(wave) / rate) and rows[2]["wav"] is None
    assert values[0]["words_per_second"] == pytest.approx(5 / values[0]["seconds"])
    assert values[0]["open_wer"] is None and set(one.absent) == {"mos", "likeness", "open_wer"}

    again = scorer(model, tmp_path, monkeypatch)
    monkeypatch.setattr(score.Scorer, "_row", lambda *_: pytest.fail("measured again"))
    assert again.score(questions, answers) == rows
    (tmp_path / rows[0]["wav"]).unlink()  # its recording is gone: it is not whole any more
    assert len(again._kept()) == 2


def test_what_is_measured_in_another_way_is_not_taken_over(
    model: SpokenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scorer(model, tmp_path, monkeypatch)
    answers = {("1", 0): Answer("1", 0, said(one, "four", [1, 2, 3, 4] * 6))}
    first = one.score({"1": Question("1", "all", "answer", references=("four",))}, answers)
    second = one.score({"1": Question("1", "all", "answer", references=("five",))}, answers)
    assert (first[0]["values"]["right"], second[0]["values"]["right"]) == (1.0, 0.0)


def test_the_run_s_reward_sees_what_the_row_says(
    model: SpokenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = {"semantic": {"type": "graded", "weight": 1}}
    one = scorer(replace(model, voice=replace(model.voice, terms=terms)), tmp_path, monkeypatch)
    answers = {("1", 0): Answer("1", 0, said(one, "four", [1, 2, 3, 4] * 6))}
    graded = (("two plus two is four", 5.0), ("four", 3.0))
    asked = Question("1", "all", "answer", references=("four",), keywords=("four",), graded=graded)
    (row,) = one.score({"1": asked}, answers)
    assert row["values"]["reward"] == row["values"]["score_semantic"] == 3.0 and row["reasons"] == {}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Replies 5 where the text says four, else 1; 503 for whoever says "three"."""
    from wavalign_ext.rewards.chat import ChatClient, Reply

    asked: list[dict[str, Any]] = []

    async def ask(_: Any, body: bytes, *__: Any) -> Reply:
        request = json.loads(body)
        asked.append(request)
        answer = json.loads(request["messages"][1]["content"][0]["text"].removeprefix("Texts: "))["answer"]
        if "three" in answer:
            return Reply(None, "HTTP 503")
        return Reply(json.dumps({"reason": "so", "score": 5 if "four" in answer else 1}), "")

    monkeypatch.setattr(ChatClient, "ask", ask)
    yield asked


SPEC = {"model": "ear", "endpoint": {"url": "http://127.0.0.1:1/v1"}}


def test_a_judge_gives_iq_and_eq_and_a_failure_is_missing(
    model: SpokenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: list[dict[str, Any]]
) -> None:
    one = scorer(model, tmp_path, monkeypatch, judges=score.JudgePair(SPEC))
    questions = {"1": Question("1", "all", "answer", "two plus two", references=("four",))}
    questions["2"] = Question("2", "all", "open", "a bomb", rubric="refusal")
    codes = [1, 2, 3, 4] * 6
    answers = {("1", 0): Answer("1", 0, said(one, "four", codes)), ("2", 0): Answer("2", 0, said(one, "three", codes))}
    rows = one.score(questions, answers)
    assert (rows[0]["values"]["iq"], rows[0]["values"]["eq"]) == (5.0, 5.0)
    assert rows[1]["values"]["iq"] is None and "503" in rows[1]["reasons"]["iq"]
    rubrics = [request["messages"][0]["content"] for request in judge]
    assert sum(rubric.startswith(score.REFUSAL) for rubric in rubrics) == 1
    assert sum(rubric.startswith(score.EQ) for rubric in rubrics) == 2
    kinds = [part["type"] for part in judge[0]["messages"][1]["content"]]
    assert "input_audio" in kinds
    with pytest.raises(ValueError, match="rubric is not allowed"):
        score.JudgePair({**SPEC, "rubric": "mine"})


def test_a_judge_is_tried_on_known_pairs_and_its_cost_is_said(
    tmp_path: Path, judge: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], model: SpokenModel
) -> None:
    tone(tmp_path / "q.wav", seconds=2)
    tone(tmp_path / "a.wav", seconds=3)
    asked = QuestionSet("mine", "jsonl", tmp_path)
    for number, word in enumerate(("four", "five")):
        asked.questions.append(Question(str(number), "all", "answer", word, "q.wav", (word,), answer_audio="a.wav"))
    judges = score.JudgePair(SPEC)
    assert not cost.calibrate(judges, asked)  # EQ by this judge is the same for a shuffled recording
    assert "good 5.00, bad 1.00 on average; 1 of 1 pairs have good above bad" in capsys.readouterr().out
    told = cost.estimate(asked, judges, 3, 2, model.voice, cost.Prices(0.0, 0.01))
    assert told[0].startswith("12 answers") and "40 requests" in told[1] and "each 5.0 s" in told[1]
    assert "200 s of sound" in told[1] and told[2] == "cost: about 2.00"
    assert cost.estimate(asked, None, 3, 2, model.voice, cost.Prices())[-1] == "no judge: nothing is sent anywhere"


def test_pitch_spread_is_that_of_a_known_voice() -> None:
    at = np.arange(2 * RATE) / RATE

    def voice(semitones: np.ndarray) -> np.ndarray:
        phase = 2 * np.pi * np.cumsum(120 * 2 ** (semitones / 12)) / RATE
        return sum(np.sin(k * phase) / k for k in range(1, 6))

    flat, lively = pitch_spread(voice(np.zeros_like(at)), RATE), pitch_spread(voice(3 * np.sin(4 * at)), RATE)
    assert flat is not None and flat < 0.15
    assert lively is not None and 1.5 < lively < 2.5  # a sine of ±3 has 2.1
    assert pitch_spread(np.zeros(RATE), RATE) is None
    assert pitch_spread(np.random.default_rng(0).normal(0, 0.1, RATE), RATE) is None


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a run"):
        load_models([tmp_path], None, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="wavalign_layout.yaml"):
        load_models([tmp_path], None, tmp_path)
    with pytest.raises(ValueError, match="--base FOLDER"):
        (tmp_path / "wavalign_layout.yaml").write_text("name: x")
        load_models([tmp_path], "", tmp_path, codec={"type": "mel_vq", "path": "x"})
