"""Dumps that people can read and play, and the same answers in TensorBoard."""

import io
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import synthetic_run as synthetic
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wavalign_ext.config import AudioDumpConfig, WavAlignConfig
from wavalign_ext.trainer.rollout_dump import SampleWriter


def write(folder: Path, board: Path | None, steps: tuple[int, ...] = (0, 5), codec: Any = None) -> None:
    config = WavAlignConfig(layout="pocket", codec={}, audio_dump=AudioDumpConfig(max_answers=2))
    writer = SampleWriter(cast(Any, None), codec or synthetic.Voice(), None, config, board)
    for step in steps:
        info = {
            "question": ["three plus four", "the opposite of hot", "what is seven"],
            "question_audio": ["q/b.flac", "q/a.flac", "q/c.flac"],
            "text": [f"seven at {step}", "cold", ""],
            "transcript": ["eleven", None, None],
            "missing": ["", "judge: HTTP 500", ""],
            "speech_codes": ["1 2 3 4 5 6 7 8", "9 9 9 9", ""],
        }
        columns = {"gts": ["seven", "cold", "seven"], "scores": [4.5, math.nan, 1.0]}
        writer.write_validation(str(folder), step, columns | {"reward_extra_infos_dict": info})


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EventAccumulator]:
    folder = tmp_path_factory.mktemp("run")
    write(folder / "validation", folder / "board")
    events = EventAccumulator(str(folder / "board"), size_guidance={"audio": 0, "tensors": 0})
    events.Reload()
    return folder, events


def test_validation_answers_can_be_played_in_tensorboard(board: tuple[Path, EventAccumulator]) -> None:
    folder, events = board
    assert events.Tags()["audio"] == ["answer/0", "answer/1"]  # one tag per question, whatever the step
    for number in range(2):
        heard = events.Audio(f"answer/{number}")
        assert [event.step for event in heard] == [0, 5]
        for event in heard:
            wave, rate = soundfile.read(io.BytesIO(event.encoded_audio_string))
            written, written_rate = soundfile.read(folder / "validation" / f"{event.step}/{number}.wav")
            assert rate == written_rate and len(wave) == len(written)
            assert np.abs(wave - written).max() < 1e-3


def test_its_text_says_what_is_heard_and_what_it_earned(board: tuple[Path, EventAccumulator]) -> None:
    texts = [
        event.tensor_proto.string_val[0].decode() for event in board[1].Tensors("answer/1/text_summary")
    ]  # the rows are sorted by question
    assert texts[1] == "**question**: three plus four  \n**text**: seven at 5  \n**heard**: eleven  \n**reward**: 4.50"
    (first, _) = board[1].Tensors("answer/0/text_summary")
    assert first.tensor_proto.string_val[0].decode().endswith("**text**: cold  \n**reward**: missing")


def test_without_a_board_there_is_none_and_the_dump_is_the_same(board: tuple[Path, EventAccumulator], tmp_path) -> None:
    write(tmp_path / "validation", None, (5,))
    assert [path.name for path in tmp_path.iterdir()] == ["validation"]
    text = (tmp_path / "validation" / "5.jsonl").read_text()
    assert text == (board[0] / "validation" / "5.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row.get("wav") for row in rows] == ["5/0.wav", "5/1.wav", None]
    assert [row["score"] for row in rows] == [None, 4.5, 1.0]


def test_one_answer_that_does_not_decode_leaves_the_dump_of_the_others(tmp_path: Path) -> None:
    class Fussy(synthetic.Voice):
        def decode(self, codes: Any) -> np.ndarray:
            if 9 in codes:
                raise RuntimeError("no such code")
            return super().decode(codes)

    write(tmp_path, None, (5,), Fussy())
    rows = [json.loads(line) for line in (tmp_path / "5.jsonl").read_text().splitlines()]
    assert [row.get("wav") for row in rows] == [None, "5/1.wav", None]
    assert rows[0]["wav_failed"] == "RuntimeError: no such code" and rows[0]["text"] == "cold"
