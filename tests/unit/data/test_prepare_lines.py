"""The file that is read: lists, packed files, and whatever one line may do."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world as small
import soundfile
from field import field

from wavalign_ext.data.prepare import command, lines
from wavalign_ext.data.prepare.command import main
from wavalign_ext.data.prepare.dialogue import parse
from wavalign_ext.data.prepare.lines import read_lines
from wavalign_ext.data.prepare.messages import SampleError
from wavalign_ext.data.prepare.sources import locate
from wavalign_ext.speech.audio import decode
from wavalign_ext.speech.codecs.fitted import MelVQ
from wavalign_ext.speech.waveform import AudioError

GOOD = {**small.dialogue("q.wav", "a.wav")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small.build(tmp_path_factory.mktemp("world"))


def with_clips(folder: Path) -> Path:
    small.record(folder / "q.wav", small.voice(1))
    small.record(folder / "a.wav", small.voice(2))
    small.record(folder / "b.wav", small.voice(3))
    return folder


# --- lists, packed files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2], ids=["one line", "indented"])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\n\n  "], ids=["plain", "mark", "blank"])
def test_a_json_list_is_read_by_item(tmp_path: Path, indent: int | None, mark: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(mark + json.dumps([GOOD, {"a": 1}, 7, GOOD], indent=indent), encoding="utf-8")
    found = list(read_lines(path))
    assert [one.number for one in found] == [1, 2, 3, 4]
    assert [one.sample is not None for one in found] == [True, False, False, True]
    assert json.loads(found[0].text) == GOOD


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (gzip.compress(b"{}", mtime=0), "is gzip: unpack it first"),
        (bz2.compress(b"{}"), "is bzip2: unpack it first"),
        (lzma.compress(b"{}"), "is xz: unpack it first"),
        (b"PK\x03\x04rest", "is a ZIP archive: unpack it first"),
        (b"PAR1rest", "is parquet: write it as JSONL"),
        ('{"a": 1}'.encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (json.dumps([GOOD] * 3, indent=1).encode()[:-40], "is neither JSONL nor a JSON list"),
        (json.dumps({"data": [GOOD]}, indent=1).encode(), r"is one JSON object \('data'\): write a list"),
        (json.dumps(GOOD, indent=1).encode() * 2, "is neither JSONL nor a JSON list"),
    ],
)
def test_what_is_no_jsonl_is_one_line(tmp_path: Path, capsys: Any, world: Any, data: bytes, what: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=what):
        list(read_lines(path))
    assert main([str(path), "--out", str(tmp_path / "out"), *world.options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_jsonl_may_begin_with_a_list(tmp_path: Path) -> None:
    path = small.write_jsonl(tmp_path / "d.jsonl", ["[1]", GOOD])
    assert [one.sample is not None for one in read_lines(path)] == [False, True]


# --- one line's fault is that line's ---------------------------------------------------------------------------------


def broken_lines() -> dict[str, Any]:
    row = dict(GOOD)
    return {
        "half a character in the target": json.dumps(row | {"sft_target_text": "the \ud83d is"}),
        "half a character in a path": json.dumps(row | {"audios": ["q\udc80.wav"]}),
        "half a character in a name": json.dumps(row | {"id": "\udfff"}),
        "half a character in a turn": json.dumps(row | {"messages": [{"role": "user", "content": "\ud800<|audio|>"}]}),
        "half a character in a key": json.dumps(row | {"\ud800": 1}),
        "NUL in a question's path": json.dumps(row | {"audios": ["q\0.wav"]}),
        "NUL in the target's path": json.dumps(row | {"sft_target_audio": "\0"}),
        "a path that is too long": json.dumps(row | {"audios": ["x" * 5000]}),
        "a folder": json.dumps(row | {"audios": ["."]}),
        "deep": "[" * 100_000,
        "a number of many digits": '{"id": ' + "9" * 5000 + "}",
        "NaN for a text": json.dumps(row | {"question_text": float("nan")}),
        "a mapping for files": json.dumps(row | {"audios": {"0": "q.wav"}}),
        "a list for a path": json.dumps(row | {"audios": [["q.wav"]]}),
        "content is null": json.dumps(row | {"messages": [{"role": "user", "content": None}]}),
        "role is a list": json.dumps(row | {"messages": [{"role": ["user"], "content": "<|audio|>"}]}),
    }


def test_any_fault_of_a_line_is_that_line_s(tmp_path: Path, world: Any, capsys: Any) -> None:
    bad = broken_lines()
    file = small.write_jsonl(with_clips(tmp_path) / "d.jsonl", [GOOD, *bad.values(), GOOD])
    options = [str(file), "--out", str(tmp_path / "out"), *world.options, "--jobs", "1", "--val-share", "0"]
    assert main(options) == 1
    said = capsys.readouterr().err
    for number, name in enumerate(bad, 2):
        assert f", line {number}, " in said, name
    assert ", line 1, " not in said and f", line {len(bad) + 2}, " not in said and f"{len(bad)} lines are wrong" in said
    assert main([*options, "--skip-bad"]) == 0
    rejects = [json.loads(text) for text in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [one["line"] for one in rejects] == list(range(2, len(bad) + 2))


@pytest.mark.parametrize(
    "error", [TypeError("x\ny"), KeyError("z"), MemoryError(), UnicodeError("w"), AssertionError()]
)
@pytest.mark.parametrize("place", ["parse", "encode", "row"])
def test_an_error_that_nobody_expects_is_a_line_s(
    tmp_path: Path, world: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, place: str
) -> None:
    """Once in reading a line, once in encoding its answer, once in making its row."""
    file = small.write_jsonl(
        with_clips(tmp_path) / "d.jsonl", [GOOD, GOOD | {"sft_target_audio": "b.wav", "id": "two"}]
    )

    def failing(original: Any, fails: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            if fails(*args):
                raise error
            return original(*args, **more)

        return call

    if place == "parse":
        monkeypatch.setattr(lines, "parse", failing(lines.parse, lambda record, *_: record.get("id") == "two"))
    elif place == "encode":
        wanted = len(MelVQ(**{k: v for k, v in world.codec.items() if k != "type"}).encode(small.voice(3)))
        calls = iter([False, True, False])
        monkeypatch.setattr(MelVQ, "encode", failing(MelVQ.encode, lambda *_: next(calls) and wanted))
    else:
        from wavalign_ext.data.prepare.rows import RowMaker

        failing_call = failing(RowMaker.__call__, lambda maker, sample, codes: sample.id == "two")
        monkeypatch.setattr(RowMaker, "__call__", failing_call)
    options = [str(file), "--out", str(tmp_path / "out"), *world.options, "--jobs", "1", "--val-share", "0"]
    assert main([*options, "--skip-bad"]) == 0
    said = capsys.readouterr().err
    assert ", line 2, " in said and type(error).__name__ in said and ", line 1, " not in said


def test_the_field_s_half_character_is_that_line_s() -> None:
    (line,) = read_lines(field("jsonl/surrogate_target.jsonl"))
    assert "target_text" in str(line.problems[0]) and "lone surrogate" in str(line.problems[0])


# --- what a recording may be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("a/b.wav", "/root/a/b.wav"),
        ("/x.wav", "/x.wav"),
        ("file:///x%20y.wav", "/x y.wav"),
        ("C:b.wav", "/root/C:b.wav"),
    ],
)
def test_files_are_found(source: str, path: str) -> None:
    assert locate(source, Path("/root")) == path


@pytest.mark.parametrize(
    "source", ["data:audio/wav;base64,c291bmQ=", "data:,sound", {"bytes": "c291bmQ="}, {"bytes": b"sound"}, b"sound"]
)
def test_files_that_a_line_holds_are_read(source: Any) -> None:
    assert locate(source, Path()) == b"sound"


@pytest.mark.parametrize(
    "source",
    [
        "http://x.org/a.wav",
        "https://x.org/a.wav?b=c",
        "s3://bucket/a.wav",
        "hf://datasets/a.wav",
        "data:audio/wav;base64",
    ]
    + ["data:audio/wav;base64," + "A" * 10_001, {"bytes": "no base64!"}],
)
def test_what_is_no_file_is_one_short_line(tmp_path: Path, world: Any, capsys: Any, source: Any) -> None:
    row = GOOD | {"audios": [source]}
    file = small.write_jsonl(with_clips(tmp_path) / "d.jsonl", [row, GOOD])
    options = [str(file), "--out", str(tmp_path / "out"), *world.options, "--jobs", "1", "--val-share", "0"]
    assert main([*options, "--skip-bad"]) == 0
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("wavalign: ")]
    assert ", line 1, audios[0]=" in said[0] and "give its path" in said[0] and len(said[0]) < 400


WAVE = np.round(small.voice(4) * 2**15).astype(np.int16)
STEREO = np.stack([WAVE, WAVE], 1)


@pytest.mark.parametrize(
    "array",
    [WAVE / 2**15, STEREO / 2**15, STEREO.T / 2**15, WAVE, STEREO, WAVE.astype(np.int32) * 65536],
    ids=["T", "T, 2", "2, T", "16 bits", "16 bits, T, 2", "32 bits"],
)
def test_arrays_are_recordings_whichever_way_they_lie(array: np.ndarray) -> None:
    found = locate({"array": array.tolist(), "sampling_rate": 16000}, Path())
    assert isinstance(found, bytes)
    wave, rate = decode(found)
    assert rate == 16000
    for channel in wave.T:
        np.testing.assert_allclose(channel, WAVE / 2**15, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ({"array": [0.1, 0.2]}, "sampling_rate is None"),
        ({"array": [0.1, 0.2], "sampling_rate": 0}, "sampling_rate is 0"),
        ({"array": [0.1, 0.2], "sampling_rate": "16k"}, "sampling_rate is '16k'"),
        ({"array": [[[0.1]]], "sampling_rate": 16000}, r"of shape \(1, 1, 1\)"),
        ({"array": [[0.1] * 99] * 99, "sampling_rate": 16000}, r"of shape \(99, 99\)"),
        ({"array": ["a"], "sampling_rate": 16000}, "other things than numbers"),
        ({"array": [[1, 2], [3]], "sampling_rate": 16000}, "other things than numbers"),
    ],
)
def test_arrays_that_are_no_recordings_are_refused(source: Any, why: str) -> None:
    with pytest.raises(AudioError, match=why):
        locate(source, Path())


# --- several clips ---------------------------------------------------------------------------------------------------


def told(world: Any, folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    import pyarrow.parquet

    out = folder / "out"
    file = small.write_jsonl(folder / "d.jsonl", [row])
    assert main([str(file), "--out", str(out), *world.options, "--jobs", "1", "--val-share", "0"]) == 0
    return pyarrow.parquet.read_table(out / "train.parquet").to_pylist()[0]


def seconds(folder: Path, name: str | None) -> float:
    return 0 if name is None else soundfile.info(folder / "out" / name).duration


def test_the_clips_of_an_answer_are_one_target_and_one_recording(tmp_path: Path, world: Any) -> None:
    folder = with_clips(tmp_path)
    one = told(world, folder, GOOD)
    row = {
        "messages": [
            {"role": "user", "content": "<|audio|>"},
            {"role": "assistant", "content": "three plus four<|audio|>"},
            {"role": "assistant", "content": "is seven <|audio|>"},
        ],
        "audios": ["q.wav", "a.wav", "a.wav"],
    }
    two = told(world, folder, row)
    assert two["target_text"] == one["target_text"] == "three plus four is seven"
    assert two["target_speech"] == one["target_speech"] * 2
    assert seconds(folder, two["extra_info"]["answer_audio"]) == pytest.approx(
        2 * seconds(folder, one["extra_info"]["answer_audio"])
    )
    listed = told(world, folder, GOOD | {"sft_target_audio": ["a.wav", "a.wav"]})
    assert listed["target_speech"] == two["target_speech"]


@pytest.mark.parametrize(
    ("messages", "audios", "clips"),
    [
        (["u:<|audio|>", "a:one", "u:two"], ["q.wav"], 0),
        (["u:<|audio|>", "a:one<|audio|>", "u:two"], ["q.wav", "a.wav"], 0),
        (["u:<|audio|>", "u:two"], ["q.wav"], 1),
        (["u:two <|audio|>", "a:one", "u:<|audio|> and <|audio|>"], ["q.wav", "b.wav", "q.wav"], 2),
        (["u:two <|audio|>", "a:one", "u:<|audio|>"], ["b.wav", "q.wav"], 1),
    ],
)
def test_judges_hear_the_question_that_was_asked(
    tmp_path: Path, world: Any, messages: list[str], audios: list[str], clips: int
) -> None:
    roles = {"u": "user", "a": "assistant"}
    given = [{"role": roles[text[0]], "content": text[2:]} for text in messages]
    folder = with_clips(tmp_path)
    heard = told(world, folder, GOOD | {"messages": given, "audios": audios})["extra_info"]["question_audio"]
    whole = seconds(folder, told(world, folder, GOOD)["extra_info"]["question_audio"])
    assert seconds(folder, heard) == pytest.approx(clips * whole, rel=0.05)


@pytest.mark.parametrize(
    ("name", "text", "clips", "asked"),
    [
        ("assistant_two_clips", "the capital of greece is athens", ["a.wav", "a2.wav"], ["q.wav"]),
        ("last_user_is_text", "the capital of greece is athens", ["a.wav"], []),
    ],
)
def test_field_lines_with_several_turns(name: str, text: str, clips: list[str], asked: list[str]) -> None:
    (line,) = read_lines(field(f"jsonl/{name}.jsonl"))
    assert line.sample and line.sample.target_text == text
    assert [clip.source for clip in line.sample.target] == clips
    assert [clip.source for clip in line.sample.asked] == asked


# --- placeholders of other projects ----------------------------------------------------------------------------------

PLACEHOLDERS = [
    "<|AUDIO|>",
    "<|audio_bos|><|audio|><|audio_eos|>",
    "<AUDIO>",
    "<speech>",
    "<SpeechHere>",
    "<|audio_1|>",
    "<audio_soft_token>",
    "<sound>",
    "[AUDIO]",
    "[BEGIN_AUDIO]",
    "<audio>path/x.wav</audio>",
    '<audio src="x.wav"/>',
    "<image>",
    "{audio}",
    "<|im_media_begin|>",
]


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_placeholders_of_other_projects_are_refused_by_name(text: str) -> None:
    held = text.count("<|audio|>") + text.count("<audio>")
    row = GOOD | {"messages": [{"role": "user", "content": f"{text} what city"}], "audios": ["q.wav"] * max(1, held)}
    with pytest.raises(
        SampleError,
        match=r"messages\[0\]\.content=.*has the placeholder '.*', which nothing here reads: write <\|audio\|>",
    ):
        parse(row)
    parts = [{"type": "text", "text": text}, {"type": "audio", "path": "q.wav"}]
    with pytest.raises(SampleError, match="has the placeholder"):
        parse(GOOD | {"messages": [{"role": "user", "content": parts}], "audios": ["q.wav"] * held})


@pytest.mark.parametrize("text", [*PLACEHOLDERS, "seven<|audio|>", "<audio>seven"])
def test_no_placeholder_belongs_into_the_target_s_text(text: str) -> None:
    with pytest.raises(SampleError, match="target_text=.*has the placeholder .*: take it out, and name recordings"):
        parse(GOOD | {"sft_target_text": text})


@pytest.mark.parametrize(
    "text", ["2 < 3 > 1", "a <b> c", "say [laughs] it", "the audio, the speech", "{x}", "i <3 audio"]
)
def test_other_brackets_are_text(text: str) -> None:
    assert parse(GOOD | {"messages": [{"role": "user", "content": f"{text}<|audio|>"}]}).turns[0].text == text


@pytest.mark.parametrize("name", ["qwen_upper_tag", "upper_AUDIO_only"])
def test_field_placeholders_are_refused_by_name(name: str) -> None:
    (line,) = read_lines(field(f"jsonl/{name}.jsonl"))
    assert "has the placeholder '<|" in str(line.problems[0])


def test_a_recorded_answer_says_what_the_text_says() -> None:
    answer = [*GOOD["messages"], {"role": "assistant", "content": "eight<|audio|>"}]
    row = GOOD | {"messages": answer, "audios": ["q.wav", "a.wav"], "sft_target_audio": None}
    with pytest.raises(
        SampleError, match=r"target_text=.*is not what the recorded answer in messages says \('eight'\)"
    ):
        parse(row)


@pytest.mark.parametrize("shape", ["sharegpt", "auto"])
def test_the_command_says_which_shapes_it_read(tmp_path: Path, world: Any, capsys: Any, shape: str) -> None:
    talk = [{"from": "human", "value": "<audio>"}, {"from": "gpt", "value": "three plus four is seven<audio>"}]
    rows = [{"conversations": talk, "audios": ["q.wav", "a.wav"]}] * 2 + ([GOOD] if shape == "auto" else [])
    file = small.write_jsonl(with_clips(tmp_path) / "d.jsonl", rows)
    options = [str(file), "--out", str(tmp_path / "out"), *world.options, "--jobs", "1", "--val-share", "0"]
    assert command.main([*options, "--format", shape]) == 0
    said = "2 as sharegpt, 1 as wavalign" if shape == "auto" else "2 as sharegpt"
    assert f"lines are read {said} (--format)" in capsys.readouterr().out
