"""``wavalign listen`` on dumps as runs leave them: separators in answers, half a line, a WAV that is not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from field import field

from wavalign_ext.report import listen
from wavalign_ext.report.reading import read_dump


def rows(folder: Path, texts: list[str]) -> Path:
    """A dump of one row a text, as the trainer writes it, with a WAV each."""
    path = folder / "validation" / "10.jsonl"
    for number, text in enumerate(texts):
        wav = path.parent / "10" / f"{number}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, np.full(1600, 0.1), 16000)
        row = {"question": "q", "text": text, "score": 4.0, "wav": f"10/{number}.wav", "speech_codes": "1 2"}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


class Whisper:
    def transcribe(self, wave: np.ndarray, rate: int) -> str:
        return "seven"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(listen, "load_recognizer", lambda _: Whisper())
    return listen.played


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_a_separator_in_an_answer_ends_no_row(tmp_path: Path, heard: Any, separator: str) -> None:
    text = f"the city{separator}is athens"
    found = heard(rows(tmp_path, [text, "seven"]))
    assert [row["text"] for row in found] == [text, "seven"] and found[1]["whisper_wer"] == 0


@pytest.mark.parametrize("tail", ['{"question": "q", "te', '{"question": "q"', "[1]\n", "\x00\x00"])
def test_what_is_half_written_is_left_out_and_said(tmp_path: Path, heard: Any, capsys: Any, tail: str) -> None:
    path = rows(tmp_path, ["seven"])
    path.write_text(path.read_text() + tail)
    assert len(heard(path)) == 1 and "1 lines that are no rows, and 0 whose WAV" in capsys.readouterr().out


def test_an_answer_whose_wav_is_gone_is_left_out_and_said(tmp_path: Path, heard: Any, capsys: Any) -> None:
    path = rows(tmp_path, ["seven", "eight"])
    (path.parent / "10" / "0.wav").unlink()
    assert [row["text"] for row in heard(path)] == ["eight"] and "1 whose WAV is not there" in capsys.readouterr().out


def test_the_field_s_dump_is_read(heard: Any) -> None:
    dump = listen.dumps_of(field("runs/u2028"))[-1]
    found, broken = read_dump(dump)
    assert broken == 0 and len(found) == len(dump.read_bytes().strip().split(b"\n"))
    assert heard(dump) == []


def test_before_and_after_are_the_oldest_and_the_newest(tmp_path: Path) -> None:
    (tmp_path / "validation").mkdir()
    for step in (0, 10, 9):
        (tmp_path / "validation" / f"{step}.jsonl").touch()
    assert [dump.stem for dump in listen.dumps_of(tmp_path)] == ["0", "10"]
    for step in (0, 10):
        (tmp_path / "validation" / f"{step}.jsonl").unlink()
    assert [dump.stem for dump in listen.dumps_of(tmp_path)] == ["9"]
