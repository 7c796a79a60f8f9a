"""The schedule as a grammar: what it lets through is what split finds no fault with, and all that interleave makes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavalign_ext.speech.layout import Layout, ResolvedLayout
from wavalign_ext.speech.turn_grammar import BEGIN, CODE, END, EOS, NEVER, TEXT, Turns, kinds_of_ids

CODES = 6


class Vocabulary:
    def __init__(self) -> None:
        names = ["a", "b", "<end>", "<pad>", "<begin>", "<close>", *(f"<s{n}>" for n in range(CODES))]
        self.ids = {name: n for n, name in enumerate([*names, *(f"<h{n}>" for n in range(3))])}

    def get_vocab(self) -> dict[str, int]:
        return self.ids


def layout(schedule: list[list[int]], bounded: bool, heard: bool = True) -> ResolvedLayout:
    node = {
        "name": "test",
        "speech": {"pattern": "<s{}>", "count": CODES},
        "user_speech": {"pattern": "<h{}>", "count": 3} if heard else None,
        "begin": "<begin>" if bounded else None,
        "end": "<close>" if bounded else None,
        "schedule": schedule,
        "counts_boundaries": False,
        "eos": ["<end>"],
        "pad": "<pad>",
    }
    return Layout.from_mapping(node).resolve(Vocabulary())


LAYOUTS = [
    layout([[1, 2], [3, 6], [4, 8]], True),
    layout([[1, 8], [4, 8]], True, heard=False),
    layout([[2, 4]], False),
    layout([[1, 1], [2, 1]], False),
]


def test_kinds() -> None:
    kinds = kinds_of_ids(LAYOUTS[0], 16)
    expected = [TEXT, TEXT, EOS, TEXT, BEGIN, END, *[CODE] * CODES, *[NEVER] * 3, TEXT]
    assert kinds == expected
    assert NEVER not in kinds_of_ids(LAYOUTS[1], 16)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(LAYOUTS), st.integers(1, 30), st.integers(1, 60))
def test_every_target_is_let_through(resolved: ResolvedLayout, words: int, codes: int) -> None:
    kinds = kinds_of_ids(resolved, 16)
    turns = Turns(resolved)
    for token_id in resolved.target([0] * words, [n % CODES for n in range(codes)]):
        assert kinds[token_id] in turns.allowed()
        turns.step(kinds[token_id])


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(LAYOUTS), st.integers(0, 2**32), st.floats(0.0, 0.5))
def test_what_is_let_through_has_no_fault(resolved: ResolvedLayout, seed: int, eagerness: float) -> None:
    """A response that takes any allowed token, and ends when it may with probability ``eagerness``."""
    rng, kinds = random.Random(seed), kinds_of_ids(resolved, 16)
    turns, ids = Turns(resolved), []
    for _ in range(200):
        allowed = turns.allowed()
        assert allowed and NEVER not in allowed
        choices = [i for i, kind in enumerate(kinds) if kind in allowed and kind != EOS]
        if EOS in allowed and (rng.random() < eagerness or not choices):
            ids.append(resolved.eos_ids[0])
            break
        ids.append(rng.choice(choices))
        turns.step(kinds[ids[-1]])
    found = resolved.split(ids)
    if found.ended:
        assert found.errors == []
        assert resolved.target(found.text_ids, found.codes) == ids
    else:
        assert all(error.startswith("the last chunk does not end") for error in found.errors)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(LAYOUTS), st.lists(st.sampled_from(range(12)), max_size=14))
def test_it_accepts_what_split_accepts(resolved: ResolvedLayout, ids: list[int]) -> None:
    ids = [i for i in ids if i not in (2, 3)]  # no eos, no padding inside
    kinds, turns, accepted = kinds_of_ids(resolved, 16), Turns(resolved), True
    for token_id in [*ids, 2]:
        accepted &= kinds[token_id] in turns.allowed()
        turns.step(kinds[token_id])
    assert accepted == (not resolved.split([*ids, 2]).errors)


@pytest.mark.parametrize("resolved", LAYOUTS)
def test_nothing_said_cannot_end(resolved: ResolvedLayout) -> None:
    assert Turns(resolved).allowed() == {TEXT}
