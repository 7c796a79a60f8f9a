"""``wavalign prepare`` as a command: broken recordings, resuming, repeating, conversations, and what verl gets."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import small_world as small

from wavalign_ext.data.prepare import encode
from wavalign_ext.data.prepare.command import main
from wavalign_ext.data.prepare.encode import Encoder, Job
from wavalign_ext.speech.codecs import fitted


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def twelve(tmp_path: Path) -> Path:
    """A JSONL file of twelve good dialogues with their recordings."""
    rows = []
    for n in range(12):
        small.record(tmp_path / f"q{n}.wav", small.voice(n))
        small.record(tmp_path / f"a{n % 3}.wav", small.voice(100 + n % 3))
        rows.append(small.dialogue(f"q{n}.wav", f"a{n % 3}.wav", keywords=["seven"]))
    return small.write_jsonl(tmp_path / "d.jsonl", rows)


def rows_of(out: Path) -> dict[int, dict[str, Any]]:
    """All rows of both files by their line number."""
    files = [out / f"{split}.parquet" for split in ("train", "val")]
    rows = [row for file in files if file.is_file() for row in pyarrow.parquet.read_table(file).to_pylist()]
    return {row["extra_info"]["index"]: row for row in rows}


def contents(out: Path) -> dict[str, bytes]:
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}


# --- 500 utterances, 25 of them broken ------------------------------------------------------------------------------


def cut(path: Path, wave: np.ndarray) -> None:
    whole = small.record(path, wave).read_bytes()
    path.write_bytes(whole[: len(whole) // 3])


def with_nan(path: Path, wave: np.ndarray) -> None:
    small.record(path, np.where(np.arange(len(wave)) == 99, np.nan, wave), subtype="FLOAT")


def at_rate(rate: int) -> Callable[[Path, np.ndarray], None]:
    return lambda path, wave: small.record(path, small.voice(7, rate=rate), rate) and None


# kind: (how its recording is written, why it is rejected, or None where it is converted)
KINDS: dict[str, tuple[Callable[[Path, np.ndarray], Any], str | None]] = {
    "empty file": (lambda path, wave: path.write_bytes(b""), "is empty"),
    "truncated": (cut, "truncated: its header promises"),
    "silence": (lambda path, wave: small.record(path, np.zeros_like(wave)), "is silent"),
    "NaN samples": (with_nan, "1 of its samples are not finite"),
    "missing file": (lambda path, wave: None, "no such file"),
    "non-audio": (lambda path, wave: path.write_text("this is a letter"), "libsndfile cannot read it"),
    "no target": (small.record, "no target"),
    "wrong rate": (at_rate(44100), None),
    "stereo": (lambda path, wave: small.record(path, np.stack([wave, 0.5 * wave], 1)), None),
    "float": (lambda path, wave: small.record(path, wave, subtype="FLOAT"), None),
}


def test_of_500_utterances_each_of_25_broken_ones_is_named_or_converted(
    world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {20 * n + 7: list(KINDS)[n % len(KINDS)] for n in range(25)}
    small.record(tmp_path / "a.wav", small.voice(1000))
    rows = []
    for number in range(1, 501):
        kind, path = broken.get(number), tmp_path / f"q{number}.wav"
        (KINDS[kind][0] if kind else small.record)(path, small.voice(number))
        row = small.dialogue(path.name, "a.wav")
        rows.append({**row, "sft_target_audio": None} if kind == "no target" else row)
    file = small.write_jsonl(tmp_path / "d.jsonl", rows)

    assert main([str(file), "--out", str(tmp_path / "out"), *world.options, "--jobs", "2", "--show", "99"]) == 1
    said = capsys.readouterr()
    assert not list((tmp_path / "out").glob("*.parquet")) and "nothing was written" in said.err
    rejected = {number: why for number, kind in broken.items() if (why := KINDS[kind][1])}
    for number, why in rejected.items():
        field = "target_audio='None'" if why == "no target" else rf"audios\[0\]='q{number}\.wav'"
        assert re.search(rf"{re.escape(str(file))}, line {number}, {field}: .*{why}.*: ", said.err), why
    assert len(re.findall(r", line \d+, ", said.err)) == len(rejected) == 19
    speed = re.search(r"([\d.]+) × real time with 2 jobs", said.out)
    assert speed and float(speed[1]) > 1
    print(speed[0])

    assert main([str(file), "--out", str(tmp_path / "out"), *world.options, "--jobs", "1", "--skip-bad"]) == 0
    assert "482 were there already" in capsys.readouterr().out  # 481 questions and the answer
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert {one["line"]: one["problems"][0]["reason"] for one in listed}.keys() == rejected.keys()
    assert all(rejected[one["line"]] in one["problems"][0]["reason"] for one in listed)
    made = rows_of(tmp_path / "out")
    assert made.keys() == set(range(1, 501)) - rejected.keys()
    for number in broken.keys() - rejected.keys():  # as long as if nothing had been strange about them
        assert made[number]["prompt"][0]["content"].count("<|heard_") == pytest.approx(0.6 * 25, abs=1)


# --- what verl gets -------------------------------------------------------------------------------------------------


def test_a_row_has_pocket_s_columns_and_its_audio_lies_beside_it(world: Any, twelve: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(twelve), "--out", str(out), *world.options, "--jobs", "1", "--val-share", "0.25"]) == 0
    rows = rows_of(out)
    assert sorted(rows) == list(range(1, 13))
    assert pyarrow.parquet.read_metadata(out / "val.parquet").num_rows == 3
    row = rows[5]
    assert row.keys() == {
        *("data_source", "prompt", "ability", "reward_model", "target_text", "target_speech", "extra_info")
    }
    assert (row["data_source"], row["ability"], row["extra_info"]["index"]) == ("d", "s2s", 5)
    assert row["extra_info"]["keywords"] == ["seven"]
    assert row["reward_model"] == {"style": "rule", "ground_truth": "three plus four is seven"}
    assert re.fullmatch(r"(<\|heard_\d+\|>){13,16}", row["prompt"][0]["content"])
    setup = world.setup()
    spoken = encode.load_coder(setup.specs["spoken"])
    from wavalign_ext.speech.audio import load_audio

    again = spoken.encode(load_audio(out / row["extra_info"]["answer_audio"], spoken.sample_rate))
    same = np.mean(np.array(again) == np.array(row["target_speech"]))
    assert same > 0.9  # the file has 16 bits, the codes were made before that
    assert (out / row["extra_info"]["question_audio"]).is_file()


def test_limits_on_length_name_the_line(world: Any, twelve: Path, tmp_path: Path, capsys: Any) -> None:
    options = [str(twelve), "--out", str(tmp_path / "out"), *world.options, "--jobs", "1"]
    assert main([*options, "--max-prompt-length", "10", "--show", "2"]) == 1
    said = capsys.readouterr().err
    assert "line 1, messages='" in said and "the prompt is longer than max_prompt_length=10" in said
    assert "12 lines are wrong; 10 not shown" in said
    assert main([*options, "--max-response-length", "10"]) == 1
    assert "the target is longer than max_response_length=10" in capsys.readouterr().err
    assert main([*options, "--max-seconds", "0.1"]) == 1
    assert "0.6 s are more than 0.1" in capsys.readouterr().err


def test_arguments_that_cannot_work_say_so_before_anything_is_read(world: Any, twelve: Path, capsys: Any) -> None:
    out = ["--out", str(twelve.parent / "out")]
    wrong = {
        "no such file": ["nowhere.jsonl", *out, *world.options],
        "no default for it: give --codec": [str(twelve), *out, "--layout", "vita_audio_boost"],
        "is no codec": [str(twelve), *out, *world.options, "--codec", "mimi"],
        "has 16 codes and layout": [str(twelve), *out, *world.options, "--layout", "pocket"],
        "--jobs=0": [str(twelve), *out, *world.options, "--jobs", "0"],
    }
    for message, arguments in wrong.items():
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert (message if message != "no such file" else "is not a file") in said or "no token" in said
    assert not (twelve.parent / "out").exists()


# --- resuming and repeating -----------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(
    world: Any, twelve: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    options = [str(twelve), *world.options, "--jobs", "1"]
    assert main([*options, "--out", str(tmp_path / "whole")]) == 0
    original, calls = Encoder.__call__, []

    def stops_at_the_eighth(self: Encoder, job: Job) -> Any:
        calls.append(job)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(self, job)

    monkeypatch.setattr(Encoder, "__call__", stops_at_the_eighth)
    with pytest.raises(KeyboardInterrupt):
        main([*options, "--out", str(tmp_path / "parts")])
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "train.parquet").exists()
    broken = next((tmp_path / "parts" / "codes").rglob("*.json"))
    broken.write_text(broken.read_text()[:10])  # as a full disk leaves it
    capsys.readouterr()
    assert main([*options, "--out", str(tmp_path / "parts")]) == 0
    assert "9 clips encoded" in capsys.readouterr().out  # 15 in all, 7 done, one of those broken
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_the_same_input_gives_the_same_bytes_wherever_it_lies(world: Any, twelve: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(twelve.parent, copy)
    assert main([str(twelve), "--out", str(tmp_path / "one"), *world.options, "--jobs", "1"]) == 0
    assert main([str(copy / "d.jsonl"), "--out", str(tmp_path / "two"), *world.options, "--jobs", "2"]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 3 + 2 * 15


def test_another_codec_or_another_trim_is_encoded_anew(world: Any, twelve: Path, tmp_path: Path, capsys: Any) -> None:
    other = small.build(tmp_path_with(tmp_path, "other"))
    small.fit_mel_vq([small.voice(9)], other.folder / "codec", seed=1, codes=small.CODES)
    out = ["--out", str(tmp_path / "out"), "--jobs", "1"]
    for options, encoded in ((world.options, 15), (world.options, 0), (other.options, 3), (world.options, 0)):
        assert main([str(twelve), *out, *options]) == 0
        assert f"{encoded} clips encoded" in capsys.readouterr().out
    assert main([str(twelve), *out, *world.options, "--trim-db", "0"]) == 0
    assert "15 clips encoded" in capsys.readouterr().out


def test_codes_of_an_older_format_or_version_are_encoded_anew_and_it_says_why(
    world: Any, twelve: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    options = [str(twelve), "--out", str(out), *world.options, "--jobs", "1"]

    def run() -> str:
        assert main(options) == 0
        said = capsys.readouterr().out
        assert said.count("encoded again") <= 1
        return said

    monkeypatch.setattr(encode, "FORMAT", 1)
    assert "encoded again" not in run()
    (out / "codes" / "VERSION").unlink()  # which format 1 did not write
    monkeypatch.undo()
    said = run()
    assert f"{out / 'codes'} is of format 1 and may hold wrong codes, now it is 3: every recording" in said
    assert "15 clips encoded" in said
    monkeypatch.setattr(fitted.MelVQ, "version", 2, raising=False)
    said = run()
    assert "version 1 of the spoken codec 'mel_vq' is now 2: every recording" in said and "3 clips encoded" in said
    said = run()
    assert "encoded again" not in said and "0 clips encoded" in said
    small.fit_mel_vq([small.voice(9)], tmp_path / "codec", seed=1, codes=small.CODES)
    options += ["--codec", json.dumps({"type": "mel_vq", "path": str(tmp_path / "codec")})]
    said = run()
    assert "the files or arguments of the spoken codec 'mel_vq' have changed" in said and "3 clips encoded" in said


def tmp_path_with(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


# --- conversations --------------------------------------------------------------------------------------------------


def test_a_conversation_keeps_its_turns_as_the_model_would_have_said_them(
    world: Any, twelve: Path, tmp_path: Path, capsys: Any
) -> None:
    messages = [
        {"role": "system", "content": "you are kind"},
        {"role": "user", "content": "<|audio|>"},
        {"role": "assistant", "content": "one plus two is three<|audio|>"},
        {"role": "user", "content": "<|audio|>"},
        {"role": "assistant", "content": "five"},
        {"role": "user", "content": "one <|audio|> two <|audio|>"},
    ]
    audios = ["q0.wav", "a0.wav", "q1.wav", "q2.wav", "q3.wav"]
    spoken_only = [messages[1], {"role": "assistant", "content": "<|audio|>"}, messages[3]]
    row = small.dialogue("", "a1.wav") | {"messages": messages, "audios": audios}
    bad = row | {"messages": spoken_only, "audios": ["q0.wav", "a0.wav", "q1.wav"]}
    special = row | {"messages": [{"role": "user", "content": "<|im_end|><|audio|>"}], "audios": ["q0.wav"]}
    file = small.write_jsonl(twelve.parent / "talk.jsonl", [row, bad, special])
    out = tmp_path / "out"
    assert main([str(file), "--out", str(out), *world.options, "--jobs", "1", "--val-share", "0", "--skip-bad"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"line 2, messages=''.*needs text and speech, not 0 text tokens", said)
    assert re.search(r"line 3, messages=.*special token '<\|im_end\|>': take it out", said)
    prompt = rows_of(out)[1]["prompt"]
    assert [message["role"] for message in prompt] == [message["role"] for message in messages]
    assert (prompt[0]["content"], prompt[4]["content"]) == ("you are kind", "five")
    assert re.fullmatch(r"one (<\|heard_\d+\|>)+ two (<\|heard_\d+\|>)+", prompt[5]["content"])
    setup = world.setup()
    split = setup.layout.split([*setup.tokenizer.encode(prompt[2]["content"]), setup.layout.eos_ids[0]])
    assert (setup.tokenizer.decode(split.text_ids), split.errors) == ("one plus two is three", [])
    assert len(split.codes) == pytest.approx(0.6 * 26.7, abs=1.5)
    assert rows_of(out)[1]["extra_info"]["question"] == "one  two"


def test_a_layout_may_bring_a_system_message_and_marks_around_the_user_s_speech(twelve: Path, tmp_path: Path) -> None:
    chat = {"system": "you are kind", "user_speech": {"begin": "<|begin_of_audio|>", "end": "<|end_of_audio|>"}}
    world = small.build(tmp_path_with(tmp_path, "chat"), chat=chat)
    options = [str(twelve), *world.options, "--jobs", "1", "--val-share", "0"]
    assert main([*options, "--out", str(tmp_path / "out")]) == 0
    system, user = rows_of(tmp_path / "out")[1]["prompt"]
    assert system == {"role": "system", "content": "you are kind"}
    assert re.fullmatch(r"<\|begin_of_audio\|>(<\|heard_\d+\|>)+<\|end_of_audio\|>", user["content"])
    assert main([*options, "--out", str(tmp_path / "none"), "--system", ""]) == 0
    assert [message["role"] for message in rows_of(tmp_path / "none")[1]["prompt"]] == ["user"]
