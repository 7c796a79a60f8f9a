"""verl's reward hook: a rollout's tokens become what the terms see, and what these say becomes a row of the dump."""

import asyncio
import math
from typing import Any

import numpy as np
import pytest
import small_world
import torch
import yaml
from omegaconf import OmegaConf
from verl import DataProto

from wavalign_ext.reward import SpokenRewardManager
from wavalign_ext.rewards import SpokenAnswer, TermFailed, register_term

seen: list[SpokenAnswer] = []


@register_term("test_reward_manager")
class Noting:
    """Keeps what it sees; fails for an answer without speech."""

    def __init__(self, scale: tuple[float, float]) -> None:
        pass

    async def score(self, answer: SpokenAnswer) -> float:
        seen.append(answer)
        answer.notes.update({"likeness": 0.75, "text": "not over the answer's own", "odd": [1]})  # pyright: ignore
        if not answer.has_speech:
            raise TermFailed("test_reward_manager: nothing to hear")
        return 4.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = small_world.build(tmp_path_factory.mktemp("world"))
    small_world.record(made.folder / "q.wav", small_world.voice(1))
    return made


def run(world: Any, speech: list[int], **info: Any) -> dict[str, Any]:
    setup = world.setup()
    terms = {"test_reward_manager": {"weight": 1}, "format": {"weight": 0}}
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
    row = {"extra_info": info, "reward_model": {"ground_truth": "three plus four is seven"}}
    rows = {name: np.array([value], dtype=object) for name, value in row.items()}

    async def score() -> dict[str, Any]:
        manager = SpokenRewardManager(OmegaConf.create({"wavalign": node}), setup.tokenizer)
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


def test_a_failed_term_is_missing_and_never_a_number(world: Any) -> None:
    found = run(world, [])
    assert math.isnan(found["reward_score"])
    assert found["reward_extra_info"]["missing"] == "test_reward_manager: nothing to hear"
    assert found["reward_extra_info"]["score_test_reward_manager"] is None
