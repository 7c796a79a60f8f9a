"""verl's reward hook: a rollout's tokens become what the terms see, and what these say becomes a row of the dump."""

import asyncio
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from verl import DataProto

from wavalign_ext.config import AudioDumpConfig, WavAlignConfig
from wavalign_ext.rewards import SpokenAnswer, TermFailed, register_term
from wavalign_ext.rewards.manager import SpokenRewardManager
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.trainer.metrics import reward_metrics
from wavalign_ext.trainer.rollout_dump import SampleWriter

seen: list[SpokenAnswer] = []


@register_term("test_reward_manager")
class Noting:
    """Keeps what it sees; fails for an answer without speech."""

    def __init__(self, scale: tuple[float, float]) -> None:
        pass

    async def score(self, answer: SpokenAnswer) -> float:
        seen.append(answer)
        answer.notes.update({"likeness": np.float32(0.75), "text": "not over the answer's own", "odd": [1]})  # pyright: ignore
        answer.notes.update({"score_of_mine": 9.0, "reward_text": 9.0, "ratio": math.nan})
        if not answer.has_speech:
            raise TermFailed("test_reward_manager: nothing to hear")
        return 4.0


def run(
    world: Any, speech: list[int], change: Callable[[SpokenRewardManager], Any] = id, weight: float = 1, **info: Any
) -> dict[str, Any]:
    """Score one answer; ``change`` may break the manager first. ``weight`` is that of the noting term."""
    setup = world.setup()
    terms = {"test_reward_manager": {"weight": weight}, "format": {"weight": 1 - weight}}
    node = {
        "layout": yaml.safe_load(world.layout.read_text()),
        "codec": world.codec,
        "audio_root": str(world.folder),
        "reward": {"scale": [1, 5], "terms": terms},
    }
    ids = setup.tokenizer.encode("three plus four is seven", add_special_tokens=False)
    response = setup.layout.target(ids, speech) if speech else [*ids, *setup.layout.eos_ids]
    batch = {"responses": torch.tensor([[*response, 0, 0]]), "attention_mask": torch.ones(1, 5 + len(response) + 2)}
    batch["attention_mask"][:, -2:] = 0
    truth = info.pop("truth", "three plus four is seven")
    row = {"extra_info": info, "reward_model": {"ground_truth": truth}}
    rows = {name: np.array([value], dtype=object) for name, value in row.items()}

    async def score() -> dict[str, Any]:
        manager = SpokenRewardManager(OmegaConf.create({"wavalign": node}), setup.tokenizer)
        change(manager)
        return await manager.run_single(DataProto.from_single_dict(batch | rows))

    seen.clear()
    return asyncio.run(score())


@pytest.mark.parametrize("keywords", [["seven"], np.array(["seven"], dtype=object)])
def test_a_term_sees_the_answer_the_question_and_the_row_s_keywords(world: Any, keywords: Any) -> None:
    found = run(world, list(range(12)), question="three plus four", question_audio="q.wav", keywords=keywords)
    (answer,) = seen
    assert (answer.text, answer.speech_codes) == ("three plus four is seven", tuple(range(12)))
    assert answer.keywords == ("seven",) and answer.ended and not answer.truncated and not answer.layout_errors
    assert answer.question_wave is not None and answer.has_speech and answer.reference_wave is None
    assert found["reward_score"] == 4.0


def test_what_a_term_finds_out_is_shown_by_name(world: Any) -> None:
    extra = run(world, [3, 3, 3])["reward_extra_info"]
    assert extra["likeness"] == 0.75 and "odd" not in extra
    assert extra["text"] == "three plus four is seven" and extra["exact"] == 1.0
    assert extra["score_test_reward_manager"] == 4.0 and extra["missing"] == ""
    assert seen[0].keywords == ()


def test_a_note_is_not_taken_for_a_score_nor_a_mean_lost_over_it(world: Any) -> None:
    extra = run(world, [3, 3, 3])["reward_extra_info"]
    assert extra["note_score_of_mine"] == extra["note_reward_text"] == 9.0 and extra["ratio"] is None
    metrics = reward_metrics([extra])
    assert {name for name in metrics if name.startswith("reward/")} == {"reward/test_reward_manager", "reward/format"}
    assert not any("ratio" in name for name in metrics)


def test_a_failed_term_is_missing_and_never_a_number(world: Any) -> None:
    found = run(world, [])
    assert math.isnan(found["reward_score"])
    assert found["reward_extra_info"]["missing"] == "test_reward_manager: nothing to hear"
    assert found["reward_extra_info"]["score_test_reward_manager"] is None


class Panic(BaseException):
    """As pyo3 raises for a panic in Rust, where tokenizers decode."""


def fails(name: str, error: BaseException) -> Callable[[SpokenRewardManager], None]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    def change(manager: SpokenRewardManager) -> None:
        owner, _, method = name.rpartition(".")
        object.__setattr__(getattr(manager, owner), method, fail)  # the layout is frozen

    return change


def gives(wave: Any) -> Callable[[SpokenRewardManager], None]:
    return lambda manager: setattr(manager.codec, "decode", lambda codes: wave)


SPLIT = fails("layout.split", ZeroDivisionError("no schedule"))
TEXT = fails("tokenizer.decode", Panic("index out of bounds"))
CODES = fails("codec.decode", StopIteration())


@pytest.mark.parametrize(
    ("change", "info", "reason", "text"),
    [
        (SPLIT, {}, "decode: ZeroDivisionError: no schedule", ""),
        (TEXT, {}, "decode: Panic: index out of bounds", ""),
        (CODES, {}, "decode: RuntimeError.*StopIteration", "three plus four is seven"),
        (gives(np.full(100, np.nan, np.float32)), {}, "decode: ValueError.*finite", "three plus four is seven"),
        (gives(np.ones((2, 100), np.float32)), {}, r"decode: ValueError.*\(2, 100\)", "three plus four is seven"),
        (id, {"truth": None}, "decode: ValueError: .*ground_truth=None is not a text", ""),
        (id, {"question_audio": "gone.wav"}, "decode: .*gone.wav", "three plus four is seven"),
    ],
    ids=["layout", "tokenizer", "codec", "nan", "channels", "no reference", "recording"],
)
def test_an_answer_that_cannot_be_decoded_is_missing_with_its_reason_and_not_lost(
    world: Any, tmp_path: Path, change: Any, info: dict[str, Any], reason: str, text: str
) -> None:
    found = run(world, list(range(12)), change, 1, **info)
    extra = found["reward_extra_info"]
    assert math.isnan(found["reward_score"]) and not seen  # no term is asked, or paid, to rate half an answer
    assert re.fullmatch(f"(?s){reason}.*", extra["missing"]) and "\n" not in extra["missing"]
    assert extra["exact"] == (1.0 if text else None)
    assert (extra["text"], extra["score_test_reward_manager"], extra["score_format"]) == (text, None, None)
    metrics = reward_metrics([extra, run(world, list(range(12)))["reward_extra_info"]])
    assert metrics["reward_notes/decode_failed"] == metrics["reward_missing/test_reward_manager"] == 0.5
    assert dumped(world, tmp_path, found)["score"] is None


def test_the_end_of_the_run_passes(world: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(world, list(range(12)), fails("codec.decode", KeyboardInterrupt()))


def test_codes_that_make_no_sound_are_an_answer_without_speech(world: Any) -> None:
    found = run(world, [3], gives(np.zeros(0, np.float32)))
    assert seen[0].wave is None and found["reward_extra_info"]["decode_failed"] == 0
    assert found["reward_extra_info"]["missing"] == "test_reward_manager: nothing to hear"


def test_a_failed_term_of_weight_0_does_not_make_the_answer_missing(world: Any, tmp_path: Path) -> None:
    found = run(world, [], weight=0)
    extra = found["reward_extra_info"]
    assert extra["missing"] == "" and extra["failed"] == "test_reward_manager: nothing to hear"
    line = dumped(world, tmp_path, found)
    assert line["score"] == found["reward_score"] and 1 <= line["score"] <= 5
    assert line["score_test_reward_manager"] is None and line["failed"] == extra["failed"]


def dumped(world: Any, folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The line of ``rollouts/STEP.jsonl``; the queue holds a mean where the score is missing."""
    setup, config = world.setup(), WavAlignConfig(layout="pocket", codec={}, audio_dump=AudioDumpConfig(max_answers=8))
    writer = SampleWriter(setup.layout, load_codec(world.codec), setup.tokenizer, config)
    score = 3.0 if math.isnan(found["reward_score"]) else found["reward_score"]
    rows = {
        "extra_fields": [{"reward_extra_info": found["reward_extra_info"]}],
        "rm_scores": torch.tensor([[0, score]]),
    }
    writer.write_rollouts(str(folder), 1, ["key_0_0"], rows)
    return json.loads((folder / "1.jsonl").read_text())
