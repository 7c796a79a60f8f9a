"""Layouts: names to ids, the schedule, and the way back from what a model says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from wavalign_ext.layout import BOUNDARY, SPEECH, TEXT, LayoutError, ResolvedLayout, known_layouts, load_layout

BASE = {
    "name": "test",
    "speech": {"pattern": "<|audio_{}|>", "count": 64},
    "heard": {"pattern": "<|heard_{}|>", "count": 16},
    "begin": "<|begin_of_audio|>",
    "end": "<|end_of_audio|>",
    "schedule": [[1, 4], [3, 8], [4, 10]],
    "eos": ["<|im_end|>"],
    "pad": "<|endoftext|>",
}
WORDS = 40


def make_tokenizer(skip: str = "", heard: int = 16, speech: int = 64) -> PreTrainedTokenizerFast:
    names = [f"w{i}" for i in range(WORDS)]
    specials = ["<|endoftext|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>"]
    specials += [f"<|heard_{i}|>" for i in range(heard)] + [f"<|audio_{i}|>" for i in range(speech)]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(["<unk>", *names])}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials if name != skip])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZER = make_tokenizer()


def resolve(**changes: object) -> ResolvedLayout:
    return load_layout({**BASE, **changes}).resolve(TOKENIZER)


def runs(layout: ResolvedLayout, ids: list[int]) -> list[str]:
    """'t3' for three text tokens, 'A8' for eight audio tokens counting boundaries, as LAYOUTS.md writes them."""
    found: list[list] = []
    for kind in layout.modality(ids).tolist():
        name = "t" if kind == TEXT else "A"
        if found and found[-1][0] == name:
            found[-1][1] += 1
        else:
            found.append([name, 1])
    return [f"{name}{count}" for name, count in found]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ([[1, 4], [3, 8], [4, 10]], "t1 A4 t3 A8 t4 A10 t2 A26"),
        ([[1, 10], [4, 10]], "t1 A10 t4 A10 t4 A10 t1 A18"),
    ],
)
def test_vita_golden_values(schedule: list, expected: str) -> None:
    layout = resolve(schedule=schedule)
    assert runs(layout, layout.interleave(range(1, 11), range(40))) == expected.split()


schedules = st.lists(st.tuples(st.integers(1, 5), st.integers(3, 9)), min_size=1, max_size=4)
texts = st.lists(st.integers(1, WORDS), min_size=1, max_size=30)
speeches = st.lists(st.integers(0, 63), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(schedules, texts, speeches, st.booleans())
def test_split_gives_back_what_interleave_took(schedule: list, text: list, codes: list, boundaries: bool) -> None:
    names = {} if boundaries else {"begin": None, "end": None}
    layout = resolve(schedule=schedule, **names)
    split = layout.split(layout.target(text, codes))
    assert (split.text_ids, split.codes, split.errors, split.ended) == (text, codes, [], True)


def test_modality_of_every_kind_of_token() -> None:
    layout, ids = resolve(), TOKENIZER.convert_tokens_to_ids
    names = ["w3", "<|audio_0|>", "<|audio_63|>", "<|heard_0|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|im_end|>"]
    expected = [TEXT, SPEECH, SPEECH, SPEECH, BOUNDARY, BOUNDARY, TEXT]
    assert layout.modality(ids(names)).tolist() == expected
    grid = torch.tensor(ids(names[:6])).reshape(2, 3)
    assert layout.modality(grid).tolist() == [expected[:3], expected[3:6]]


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        (["w1", "<|audio_1|>", "<|im_end|>"], "speech outside a chunk"),
        (["w1", "<|begin_of_audio|>", "w2", "<|end_of_audio|>", "<|im_end|>"], "text inside a speech chunk"),
        (["w1", "<|begin_of_audio|>", "<|audio_1|>", "<|im_end|>"], "does not end"),
        (["w1", "<|end_of_audio|>", "<|im_end|>"], "did not begin"),
        (["w1", "<|heard_2|>", "<|im_end|>"], "user's speech"),
        (["w1", "<|im_end|>", "w2"], "after the end"),
    ],
)
def test_split_names_what_a_model_did_wrong(tokens: list[str], error: str) -> None:
    split = resolve().split(TOKENIZER.convert_tokens_to_ids(tokens))
    assert any(error in found for found in split.errors), split.errors
    assert split.ended


def test_a_response_without_eos_has_not_ended() -> None:
    assert not resolve().split(TOKENIZER.convert_tokens_to_ids(["w1", "w2"])).ended


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": [[0, 8]]}, "at least 1 text token"),
        ({"schedule": [[1, 2]]}, "more than 2 audio"),
        ({"schedule": []}, "schedule is empty"),
        ({"heard": {"pattern": "<|audio_{}|>", "count": 8}}, "overlap"),
        ({"eos": ["<|audio_3|>"]}, "lies in the speech range"),
        ({"eos": []}, "eos is empty"),
        ({"begin": "<|nothing|>"}, "no token '<|nothing|>'"),
        ({"type": "parallel"}, "not supported yet"),
        ({"heard": "continuous"}, "continuous"),
        ({"speech": {"pattern": "<|audio|>", "count": 8}}, "pattern"),
    ],
)
def test_layouts_that_cannot_work_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(LayoutError, match=message) as caught:
        resolve(**changes)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_the_speech_tokens_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"no token '<\|audio_63\|>'"):
        load_layout(BASE).resolve(make_tokenizer(speech=63))
    with pytest.raises(LayoutError, match=r"<\|audio_9\|>"):
        load_layout(BASE).resolve(make_tokenizer(skip="<|audio_9|>"))


def test_ids_beyond_the_model_are_refused() -> None:
    with pytest.raises(LayoutError, match="beyond the model's vocabulary of 100"):
        load_layout(BASE).resolve(TOKENIZER, vocab_size=100)


@pytest.mark.parametrize(("text", "codes"), [([], [1]), ([1], []), ([1], [64])])
def test_targets_that_are_not_whole_are_refused(text: list, codes: list) -> None:
    with pytest.raises(LayoutError):
        resolve().target(text, codes)


def test_unknown_names_list_the_known_ones() -> None:
    assert "pocket" in known_layouts()
    with pytest.raises(LayoutError, match="pocket"):
        load_layout("no_such_layout")
