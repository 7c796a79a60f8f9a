"""A pair that cannot be compared ends the run before Ray starts, in one line that names the row and the remedy."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from wavalign_ext.checks.preflight_pairs import check_pair
from wavalign_ext.config import ConfigError, WavAlignConfig

GOOD = {"target_text": "a b", "target_speech": [1, 2], "rejected_text": "c", "rejected_speech": [3]}


class Tokenizer:
    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) for letter in text.replace(" ", "")]


class Layout:
    """Codes are ids from 1000."""

    def target(self, ids: list[int], codes: list[int]) -> list[int]:
        if not codes:
            raise ValueError("a response needs text and speech, not 1 text tokens and 0 codes: fix or drop the row")
        return [*ids, *(1000 + code for code in codes), 0]

    def drawn(self, ids: list[int]) -> torch.Tensor:
        return torch.ones(len(ids), dtype=torch.bool)

    def modality(self, ids: Any) -> torch.Tensor:
        return (torch.as_tensor(ids) >= 1000).to(torch.int8)


def said(row: dict[str, Any], longest: int = 9, **wav: Any) -> str | None:
    node = {"layout": "pocket", "codec": {}, "mixing": {"type": "fixed", "value": 1.0}}
    config = OmegaConf.create({"data": {"max_response_length": longest}})
    built = WavAlignConfig.from_mapping(node | {"preference": {"objective": "dpo"}} | wav)
    try:
        check_pair(row, "pairs.parquet, row 7", config, built, Tokenizer(), Layout())
    except ConfigError as error:
        assert "\n" not in str(error) and str(error).startswith("pairs.parquet, row 7: ")
        return str(error)
    return None


def test_a_good_pair_passes() -> None:
    assert said(GOOD) is None
    assert said({**GOOD, "chosen_text": "d", "chosen_speech": [1], "target_text": None}) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rejected_text": None}, "no pair: rejected_text and rejected_speech must be there"),
        ({"rejected_text": "a b", "rejected_speech": [1, 2]}, "chosen and rejected are the same answer, 'a b'"),
        ({"rejected_text": ""}, "rejected has no text token: its text is ''; leave the row out"),
        ({"target_text": "abcdefgh"}, "chosen has 11 tokens, more than data.max_response_length=9: raise it"),
        ({"rejected_speech": []}, "rejected: a response needs text and speech"),
    ],
)
def test_a_bad_one_is_named(change: dict[str, Any], why: str) -> None:
    line = said(GOOD | change)
    assert line is not None and why in line


def test_an_adaptive_weight_wants_scores() -> None:
    line = said(GOOD, mixing={"type": "adaptive"})
    assert line is not None and "no chosen_score and rejected_score" in line
    assert said({**GOOD, "chosen_score": 4.0, "rejected_score": 2.0}, mixing={"type": "adaptive"}) is None
