"""``wavalign judge``: known answers through a judge on loopback, and an estimate that equals a count by hand."""

import json
from pathlib import Path
from typing import Any

import fake_time
import numpy as np
import pandas as pd
import pytest
import soundfile
from aiohttp import web
from judge_server import JudgeServer, always, says
from omegaconf import OmegaConf

from wavalign_ext.checks import judge_check
from wavalign_ext.checks.judge_check import Prices, calibrate, estimate, judges_of, known_pairs, read_answers

TARGETS = ["three plus four is seven", "巴黎是法国的首都", "snow is white"]


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Three validation rows with a second of question and half a second of answer each, ten training rows."""
    for name, length in (("question", 16000), ("answer", 12000)):
        wave = np.sin(np.arange(length) / 7) / 2
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000 if name == "question" else 24000)
    info = {"question": "what?", "question_audio": "question.wav", "answer_audio": "answer.wav"}
    rows = [{"reward_model": {"ground_truth": text}, "extra_info": info} for text in [TARGETS[0], *TARGETS]]
    pd.DataFrame(rows).to_parquet(tmp_path / "val.parquet")
    pd.DataFrame([rows[0]] * 10).to_parquet(tmp_path / "train.parquet")
    return OmegaConf.create(
        {
            "data": {
                "train_files": str(tmp_path / "train.parquet"),
                "val_files": [str(tmp_path / "val.parquet")],
                "train_batch_size": 2,
            },
            "actor_rollout_ref": {"rollout": {"n": 4, "val_kwargs": {"n": 1}}},
            "trainer": {"total_training_steps": None, "total_epochs": 3, "test_freq": 10, "val_before_train": True},
        }
    )


def judges(url: str, *aspects: str, **settings: Any) -> dict:
    endpoint = {"url": url, "backoff_s": 0.01, "retries": 0}
    return judges_of(
        {
            aspect: {"type": "judge", "aspect": aspect, "model": "m", "endpoint": endpoint, **settings}
            for aspect in aspects
        },
        (1.0, 5.0),
    )


def test_targets_are_read_once_each_with_their_recordings(config: Any, tmp_path: Path) -> None:
    answers = read_answers(config, str(tmp_path), 9)
    assert [answer.text for answer in answers] == TARGETS
    assert len(read_answers(config, str(tmp_path), 2)) == 2
    first = answers[0]
    assert (first.sample_rate, first.question_rate) == (24000, 16000)
    assert first.wave is not None and len(first.wave) == 12000 and first.reference_text == first.text


def test_bad_is_another_rows_answer_or_for_sound_the_same_in_pieces(config: Any, tmp_path: Path) -> None:
    answers = read_answers(config, str(tmp_path), 9)
    for good, bad in known_pairs("semantic", answers):
        assert bad.text != good.text == bad.reference_text
    for good, bad in known_pairs("acoustic", answers):
        assert good.wave is not None and bad.wave is not None and bad.text == good.text
        assert not np.array_equal(good.wave, bad.wave) and np.array_equal(np.sort(good.wave), np.sort(bad.wave))


async def fair(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
    texts = json.loads(server.asked[-1]["messages"][1]["content"][0]["text"].removeprefix("Texts: "))
    return says(json.dumps({"reason": "", "score": 5 if texts["answer"] == texts["reference"] else 2}))


def calibrated(handle: Any, config: Any, root: Path, *aspects: str, **settings: Any) -> tuple[bool, int]:
    async def main() -> tuple[bool, int]:
        async with JudgeServer(handle).running() as server:
            found = await calibrate(judges(server.url, *aspects, **settings), read_answers(config, str(root), 9))
            return found, len(server.asked)

    return fake_time.run(main())


def test_a_fair_judge_is_usable(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert calibrated(fair, config, tmp_path, "semantic", "holistic") == (True, 8)
    out = capsys.readouterr().out
    assert "good 5.00, bad 2.00 on average; 2 of 2 pairs" in out and TARGETS[1] in out


def test_a_judge_that_likes_everything_is_not(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert calibrated(always("<score>5</score>"), config, tmp_path, "acoustic") == (False, 4)
    assert "0 of 2 pairs have good above bad" in capsys.readouterr().out


def test_a_judge_that_does_not_answer_is_quoted(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    async def refuse(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
        return web.Response(status=401, text="bad key")

    assert calibrated(refuse, config, tmp_path, "holistic") == (False, 4)
    out = capsys.readouterr().out
    assert "HTTP 401 bad key" in out and "no pair was scored" in out


def test_rows_without_recordings_are_not_sent_to_a_judge_of_sound(
    config: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"reward_model": {"ground_truth": text}, "extra_info": {"question": "what?"}} for text in TARGETS]
    pd.DataFrame(rows).to_parquet(tmp_path / "val.parquet")
    assert calibrated(fair, config, tmp_path, "holistic") == (False, 0)
    assert "extra_info.answer_audio" in capsys.readouterr().out
    assert calibrated(fair, config, tmp_path, "semantic", audio=False) == (True, 4)


def test_the_estimate_equals_a_count_by_hand(config: Any, tmp_path: Path) -> None:
    answers = read_answers(config, str(tmp_path), 9)
    asked = judges("http://127.0.0.1:9/v1", "holistic")
    lines = estimate(config, asked, answers, Prices(second=0.01))
    # 10 rows, 2 a step, 3 epochs: 15 steps of 8 rollouts; validations before step 1, after 10 and 15, of 4 rows.
    assert lines[0].startswith("15 steps: 120 rollouts and 12 validation answers")
    assert "132 requests, each 1.5 s of sound" in lines[1]
    assert f"cost: about {132 * 1.5 * 0.01:.2f}" in lines[2]
    config.trainer.update({"total_training_steps": 5, "test_freq": -1, "val_before_train": False})
    assert estimate(config, asked, answers, Prices())[0].startswith("5 steps: 40 rollouts and 0 validation")
    assert "give --per-1k-tokens" in estimate(config, asked, answers, Prices())[2]


def test_a_judge_without_ears_costs_no_sound(config: Any, tmp_path: Path) -> None:
    answers = read_answers(config, str(tmp_path), 9)
    asked = judges("http://127.0.0.1:9/v1", "semantic", audio=False)
    assert "each 0.0 s of sound" in estimate(config, asked, answers, Prices())[1]


def test_what_cannot_be_checked_is_said(config: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no judge is among the reward terms \\(format\\)"):
        judges_of({"format": {}}, (1.0, 5.0))
    pd.DataFrame([{"reward_model": {"ground_truth": "a"}, "extra_info": {"question": "?"}}]).to_parquet(
        tmp_path / "val.parquet"
    )
    with pytest.raises(ValueError, match="fewer than two different targets"):
        read_answers(config, str(tmp_path), 4)
    config.data.val_files = str(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet' is not a file"):
        read_answers(config, str(tmp_path), 4)


def test_the_command_ends_with_a_line_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(overrides: Any) -> Any:
        raise ValueError("no such\nrecipe")

    monkeypatch.setattr(judge_check, "compose_recipe", fail)
    assert judge_check.main([]) == 2
    assert capsys.readouterr().err == "wavalign judge: no such recipe\n"
    assert judge_check.main(["--pairs", "0"]) == 2
    assert "--pairs=0 is not allowed" in capsys.readouterr().err
