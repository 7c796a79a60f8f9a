"""``wavalign prepare`` for models that hear through an encoder: vectors once per recording, rows that name them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import small_world as small
import torch
from ears_world import LAYOUT, SIZE
from sensevoice_folder import SMALL, write_funasr

from wavalign_ext.data.prepare.command import main
from wavalign_ext.data.prepare.hear import open_encoder
from wavalign_ext.data.prepare.raw_rows import RawRows
from wavalign_ext.speech.audio import load_audio
from wavalign_ext.speech.heard import load_features, read_header

PATCH = "<|context_of_audio|>"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> small.World:
    made = small.build(tmp_path_factory.mktemp("world"), user_speech={"pattern": PATCH, "count": 1})
    node = {**LAYOUT, "encoder": {**LAYOUT["encoder"], "most": 20}}
    made.layout.write_text(json.dumps(node))  # JSON is YAML
    write_funasr(made.folder / "ears", SMALL)
    return made


@pytest.fixture
def options(world: small.World) -> list[str]:
    ears = json.dumps({"type": "sensevoice", "path": str(world.folder / "ears")})
    common = ["--layout", str(world.layout), "--tokenizer", str(world.folder / "model")]
    return [*common, "--codec", json.dumps(world.codec), "--encoder", ears, "--trim-db", "0"]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    rows = []
    for n in range(6):
        small.record(tmp_path / f"q{n}.wav", small.voice(n, seconds=0.5 + 0.05 * n))
        rows.append(small.dialogue(f"q{n}.wav", "a.wav"))
    small.record(tmp_path / "a.wav", small.voice(100))
    said, heard = {"role": "assistant", "content": "one<|audio|>"}, {"role": "user", "content": "<|audio|>"}
    rows[5]["messages"], rows[5]["audios"] = [heard, said, heard], ["q0.wav", "a.wav", "q5.wav"]
    return small.write_jsonl(tmp_path / "d.jsonl", rows)


def rows_of(out: Path) -> dict[int, dict[str, Any]]:
    rows = [
        row for split in ("train", "val") for row in pyarrow.parquet.read_table(out / f"{split}.parquet").to_pylist()
    ]
    return {row["extra_info"]["index"]: row for row in rows}


def test_rows_name_what_the_encoder_heard_in_the_prompts_order(
    world: small.World, options: list[str], lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = lines.parent / "out"
    assert main([str(lines), "--out", str(out), *options]) == 0
    told = capsys.readouterr().out
    assert "× real time" in told and "6 of them through the encoder, " in told
    rows, encoder = rows_of(out), open_encoder({"type": "sensevoice", "path": str(world.folder / "ears")})
    assert len(rows) == 6
    for number, questions in [*((n, [n - 1]) for n in range(1, 6)), (6, [0, 5])]:
        heard = load_features(rows[number]["heard_features"], str(out))
        for found, question in zip(heard, questions, strict=True):
            expected = encoder.encode(load_audio(lines.parent / f"q{question}.wav", 16000))
            assert expected.shape[1] == SIZE and torch.equal(found, expected)
        said = "".join(message["content"] for message in rows[number]["prompt"] if message["role"] == "user")
        assert said.count(PATCH) == sum(map(len, heard))
    header = read_header(out / rows[1]["heard_features"][0])
    assert (header.encoder, header.fingerprint) == ("sensevoice", encoder.fingerprint())
    before = {file: file.stat().st_mtime_ns for file in (out / "features").rglob("*.safetensors")}
    assert len(before) == 6
    next(iter(before)).unlink()  # as if the first run had been stopped
    assert main([str(lines), "--out", str(out), *options, "--jobs", "2"]) == 0
    assert "1 clips encoded" in capsys.readouterr().out
    changed = {file for file, then in before.items() if file.stat().st_mtime_ns != then}
    assert changed == {next(iter(before))} and rows_of(out) == rows


def test_equal_prompts_of_different_recordings_are_not_one_question(options: list[str], tmp_path: Path) -> None:
    for n in range(8):
        small.record(tmp_path / f"q{n}.wav", small.voice(n))
    small.record(tmp_path / "a.wav", small.voice(100))
    lines = small.write_jsonl(tmp_path / "d.jsonl", [small.dialogue(f"q{n}.wav", "a.wav") for n in range(8)])
    out = tmp_path / "out"
    assert main([str(lines), "--out", str(out), *options, "--val-share", "0.25"]) == 0
    assert len({json.dumps(row["prompt"]) for row in rows_of(out).values()}) == 1
    assert pyarrow.parquet.read_table(out / "val.parquet").num_rows == 2


@pytest.mark.parametrize(
    ("seconds", "message"), [(0.02, "too short: 0.025 to 30 s are allowed"), (1.6, "31 vectors, the layout allows 20")]
)
def test_a_recording_that_the_encoder_does_not_take(
    options: list[str], tmp_path: Path, seconds: float, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small.record(tmp_path / "q.wav", small.voice(0, seconds))
    small.record(tmp_path / "a.wav", small.voice(100))
    lines = small.write_jsonl(tmp_path / "d.jsonl", [small.dialogue("q.wav", "a.wav")])
    assert main([str(lines), "--out", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (None, "hears through an encoder: give it, --encoder '{type: sensevoice, path: FOLDER}'"),
        ({"type": "whisper", "path": "x"}, "hears through 'sensevoice', not 'whisper': give its own encoder"),
        ({"type": "sensevoice", "path": "/no/such"}, "has no am.mvn"),
        ({"type": "sensevoice", "path": "/no/such", "trainable": True}, "trainable is not supported"),
        ({"type": "sensevoice", "path": "/no/such", "speed": 2}, "unexpected keyword argument 'speed': correct its"),
    ],
)
def test_an_encoder_that_is_not_the_layouts(
    world: small.World,
    options: list[str],
    lines: Path,
    encoder: Any,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = options.index("--encoder")
    given = options[:at] + options[at + 2 :] + ([] if encoder is None else ["--encoder", json.dumps(encoder)])
    assert main([str(lines), "--out", str(lines.parent / "out"), *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_another_size_than_the_layouts(options: list[str], lines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {**LAYOUT, "encoder": {**LAYOUT["encoder"], "size": 512}}
    (lines.parent / "other.yaml").write_text(json.dumps(other))
    given = [str(lines.parent / "other.yaml") if "small.yaml" in word else word for word in options]
    assert main([str(lines), "--out", str(lines.parent / "out"), *given]) == 2
    assert "'sensevoice' has 32 numbers per vector and layout 'ears' 512" in capsys.readouterr().err


def test_raw_rows_hear_as_prepared_ones_do(world: small.World, options: list[str], lines: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    settings = {
        "layout": str(world.layout),
        "codec": world.codec,
        "encoder": {"type": "sensevoice", "path": str(world.folder / "ears")},
        "audio_root": str(tmp_path),
    }
    rows = RawRows(settings, AutoTokenizer.from_pretrained(world.folder / "model"))
    prompt = [{"role": "user", "content": "<|audio|>"}]
    row = {"prompt": prompt, "audios": ["q2.wav"], "target_text": "three", "target_speech": [1, 2, 3, 4, 5, 6]}
    made = rows(row)
    (heard,) = load_features(made["heard_features"], str(tmp_path))
    assert made["prompt"][-1]["content"].count(PATCH) == len(heard) and made["target_speech"] == row["target_speech"]
    assert np.isfinite(heard.numpy()).all() and rows(row) == made
    ready = {"prompt": prompt, "heard_features": ["x"], "target_text": "a", "target_speech": [1]}
    assert rows(ready)["heard_features"] == ["x"]
