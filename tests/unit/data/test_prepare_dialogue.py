"""Lines of JSONL as dialogues: field names, placeholders, turns, and what is wrong with a line."""

import json
from pathlib import Path
from typing import Any

import pytest

from wavalign_ext.data.prepare.dialogue import parse
from wavalign_ext.data.prepare.files import digest, split_off
from wavalign_ext.data.prepare.lines import read_lines
from wavalign_ext.data.prepare.messages import HEARD, SPOKEN, SampleError

USER = {"role": "user", "content": "<|audio|>"}


def line(**fields: Any) -> dict[str, Any]:
    row = {"messages": [USER], "audios": ["q.wav"], "target_text": "seven", "target_audio": "a.wav", **fields}
    return {name: value for name, value in row.items() if value is not None}


def test_the_release_s_example_and_ours_mean_the_same() -> None:
    messages = [{"role": "system", "content": "You are Luke."}, {"role": "user", "content": "Answer.\n\n<|audio|>"}]
    ours = parse(line(messages=messages, question_text="Answer."))
    release = {"messages": messages, "audios": ["q.wav"], "sft_target_text": "seven", "sft_target_audio": "a.wav"}
    assert parse({**release, "task_type": "s2s", "question_text": "Answer."}) == ours
    assert [turn.role for turn in ours.turns] == ["system", "user"]
    assert ours.turns[1].text == "Answer." and ours.turns[1].clips[0].source == "q.wav"
    assert (ours.target_text, ours.target[0].source, ours.task, ours.question) == ("seven", "a.wav", "s2s", "Answer.")


def test_the_release_s_older_rows_have_no_messages() -> None:
    sample = parse({"question_audio": "q.wav", "history": "Hello.", "answer_text": "hi", "answer_audio_path": "a.wav"})
    assert sample.turns[0].text == "Hello." and [clip.source for clip in sample.clips] == ["q.wav", "a.wav"]


def test_clips_go_to_placeholders_in_order_and_are_heard_or_spoken() -> None:
    messages = [
        {"role": "system", "content": "Your voice: <audio>"},
        {"role": "user", "content": "<|audio|> and <|audio|>"},
        {"role": "assistant", "content": "yes<|audio|>"},
        USER,
    ]
    sample = parse(line(messages=messages, audios=list("vwxyz")))
    assert [(clip.name, clip.source, clip.role) for clip in sample.clips] == [
        ("audios[0]", "v", HEARD),
        ("audios[1]", "w", HEARD),
        ("audios[2]", "x", HEARD),
        ("audios[3]", "y", SPOKEN),
        ("audios[4]", "z", HEARD),
        ("target_audio", "a.wav", SPOKEN),
    ]
    assert sample.turns[1].parts[1] == " and "


def test_clips_given_in_place_and_clips_without_a_place() -> None:
    parts = [{"type": "audio", "audio": "x.wav"}, {"type": "text", "text": "?"}, {"type": "audio", "path": "y.wav"}]
    sample = parse(line(messages=[{"role": "user", "content": parts}], audios=None))
    assert [clip.source for clip in sample.turns[0].clips] == ["x.wav", "y.wav"]
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    ends = parse(line(messages=talk, audios=["1", "2"]))
    assert [[clip.source for clip in turn.clips] for turn in ends.turns] == [["1"], [], ["2"]]
    one = parse(line(messages=talk, audios="1"))
    assert [[clip.source for clip in turn.clips] for turn in one.turns] == [[], [], ["1"]]


def test_a_closing_answer_is_the_target_unless_fields_give_one() -> None:
    messages = [USER, {"role": "assistant", "content": "seven<|audio|>"}]
    sample = parse(line(messages=messages, audios=["q", "b"], target_text=None, target_audio=None))
    assert (sample.target_text, sample.target[0].source, len(sample.turns)) == ("seven", "b", 1)
    sample = parse(line(messages=messages, audios=["q", "b"]))
    assert (sample.target[0].source, [clip.source for clip in sample.clips]) == ("a.wav", ["q", "a.wav"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "line='.1.': is not a JSON object"),
        (line(messages=None, audios=None), "messages='None': is no list"),
        (line(messages=[{"role": "robot", "content": ""}]), r"messages\[0\]=.*robot.*one of system, user, assistant"),
        (line(messages=[{"role": "user", "content": 3}]), r"messages\[0\].content='3': is no text"),
        (line(messages=[{"role": "user", "content": [{"type": "video"}]}]), r"content\[0\]=.*video.*is no part"),
        (line(audios=["a", "b"]), "2 files for 1 <"),
        (line(audios=[]), "0 files for 1"),
        (line(audios=[7]), r"audios\[0\]='7': is no file name"),
        (line(messages=[{"role": "user", "content": "hi"}], audios=None), "the user says nothing"),
        (line(messages=[{"role": "user", "content": "hi"}], audios=["a", "b"]), "say where each belongs"),
        (line(target_text=None), "target_text='None': no target"),
        (line(target_text="  "), "target_text='None': no target"),
        (line(target_audio=None), "target_audio='None': no target"),
        (line(target_text=5), "target_text='5': is no text"),
        (line(keywords="seven"), "keywords='seven': is no list of words"),
        (line(keywords=["seven", " "]), "is no list of words"),
        (line(sft_target_text="eight"), "target_text and sft_target_text=.*differ: keep one"),
    ],
)
def test_what_is_wrong_is_named(row: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        parse(row)


def test_lines_are_counted_as_an_editor_does_and_bad_ones_keep_their_text(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = json.dumps(line(target_text="größer")).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n{broken\n" + b'{"a": "\xff"}\r\n' + good)
    lines = list(read_lines(path))
    assert [one.number for one in lines] == [1, 3, 4, 5]
    assert [one.sample is not None for one in lines] == [True, False, False, True]
    assert "is not JSON" in str(lines[1].problems[0]) and "not UTF-8" in str(lines[2].problems[0])
    assert lines[1].text == "{broken"


def test_keywords_are_a_row_s_own() -> None:
    assert parse(line(keywords=["seven", " eight "])).keywords == ("seven", "eight") and parse(line()).keywords == ()


def test_fields_that_nothing_reads_are_known() -> None:
    assert parse(line(score_gap=1, id=7)).ignored == ("score_gap",)


def test_what_is_held_out_is_exact_repeats_itself_and_keeps_equal_questions_together() -> None:
    digests = [digest(n) for n in range(100)]
    held = split_off(digests, 0.1)
    assert len(held) == 10 and held == split_off(digests, 0.1)
    assert {digests[n] for n in held} == {digests[n] for n in split_off(digests[:50] + digests[50:], 0.1)}
    assert split_off(digests, 0) == set() and split_off(digests[:1], 0.5) == set()
    assert len(split_off(digests[:3], 0.01)) == 1 and len(split_off(digests[:2], 0.9)) == 1
    twice = split_off(digests + digests, 0.1)
    assert {n + 100 for n in twice if n < 100} == {n for n in twice if n >= 100}
