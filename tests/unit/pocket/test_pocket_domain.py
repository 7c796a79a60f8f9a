"""What the pocket model is asked, and the one vocabulary that asks and answers."""

import subprocess
import sys
from collections import Counter

import pytest

from wavalign_ext.pocket import ANSWER_CODES, HEARD_UNITS
from wavalign_ext.pocket.domain import FORM_SCORES, FORM_SHARES, FORMS, LIKED, PHRASINGS, is_right, items, questions
from wavalign_ext.pocket.tokens import build_tokenizer
from wavalign_ext.speech.layout import load_layout

LAYOUT = load_layout("pocket")
ANSWERS = [form.format(item.word) for item in items() for form in FORMS.values()]
SENTENCES = [q.text for q in questions()] + ANSWERS
TOKENIZER = build_tokenizer(SENTENCES, LAYOUT)


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, wavalign_ext.pocket; print([m for m in ('torch', 'verl', 'transformers') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_question_has_one_answer() -> None:
    found = items()
    assert len(found) == 100
    answers: dict[str, str] = {}
    for question in questions():
        word = found[question.item].word
        assert answers.setdefault(f"{question.kind}: {question.text}", word) == word
    assert len({(item.kind, item.blank) for item in found}) == len(found)


@pytest.mark.parametrize(
    ("kind", "blank", "word"),
    [
        ("day", "after sunday", "monday"),
        ("day", "before monday", "sunday"),
        ("month", "after december", "january"),
        ("opposite", "cold", "hot"),
        ("capital", "norway", "oslo"),
        ("color", "coal", "black"),
    ],
)
def test_facts_at_the_edges(kind: str, blank: str, word: str) -> None:
    assert word in {item.word for item in items() if (item.kind, item.blank) == (kind, blank)}


def test_a_fifth_of_the_facts_of_every_kind_is_never_taught() -> None:
    taught = {kind: [item.taught for item in items() if item.kind == kind] for kind in PHRASINGS}
    assert all(any(some) and not all(some) for some in taught.values())
    assert sum(map(sum, taught.values())) == 80


def test_the_reward_likes_one_form_and_demonstrations_have_all() -> None:
    assert FORMS.keys() == FORM_SHARES.keys() == FORM_SCORES.keys()
    assert max(FORM_SCORES, key=FORM_SCORES.__getitem__) == LIKED
    assert sum(FORM_SHARES.values()) == pytest.approx(1) and FORM_SHARES[LIKED] < 0.5
    item = items()[0]
    assert item.graded()[item.answer] == 5.0 and len(item.graded()) == len(FORMS)


@pytest.mark.parametrize(
    ("text", "right"), [("the answer is oslo", True), ("oslo", True), ("it is oslo", False), ("", False)]
)
def test_an_answer_is_right_in_any_form(text: str, right: bool) -> None:
    assert is_right(text, "oslo") is right and not is_right(text, "rome")


def test_each_item_has_one_phrasing_held_out_and_several_others() -> None:
    held_out = Counter(q.item for q in questions() if q.held_out)
    assert set(held_out) == set(range(len(items()))) and set(held_out.values()) == {1}
    known = {q.text for q in questions() if not q.held_out}
    assert not known & {q.text for q in questions() if q.held_out}
    assert all(len(set(phrasings)) >= 3 for phrasings in PHRASINGS.values())


def test_every_word_is_one_token_and_the_ids_have_no_gap() -> None:
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(len(TOKENIZER)))
    for sentence in SENTENCES:
        ids = TOKENIZER.encode(sentence, add_special_tokens=False)
        assert len(ids) == len(sentence.split())
        assert TOKENIZER.decode(ids) == sentence


def test_the_layout_resolves_and_its_ranges_have_the_codebooks_sizes() -> None:
    layout = LAYOUT.resolve(TOKENIZER, vocab_size=len(TOKENIZER))
    assert layout.speech_end - layout.speech_start == ANSWER_CODES
    assert layout.user_speech_end - layout.user_speech_start == HEARD_UNITS
    assert layout.eos_ids == (TOKENIZER.eos_token_id,) and layout.pad_id == TOKENIZER.pad_token_id
    assert layout.eos_ids[0] != layout.pad_id


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "tell me"}]])
def test_the_chat_template_gives_the_questions_tokens_and_they_come_back(system: list[dict[str, str]]) -> None:
    layout = LAYOUT.resolve(TOKENIZER)
    codes = [0, 511, 7, 7]
    messages = [*system, {"role": "user", "content": layout.user_speech_prompt(codes)}]
    ids = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert [
        i - layout.user_speech_start for i in ids if layout.user_speech_start <= i < layout.user_speech_end
    ] == codes
    text = TOKENIZER.decode(ids, skip_special_tokens=False)
    assert TOKENIZER.encode(text, add_special_tokens=False) == ids
    assert text.endswith("<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\ntell me<|im_end|>") == bool(system)
    assert len(ids) <= len(codes) + 12 + len(system) * 8  # the template itself is short


def test_an_answer_keeps_only_its_words_without_special_tokens() -> None:
    layout = LAYOUT.resolve(TOKENIZER)
    text = TOKENIZER.encode("the answer is black", add_special_tokens=False)
    target = layout.target(text, list(range(20)))
    assert TOKENIZER.decode(target, skip_special_tokens=True) == "the answer is black"
    split = layout.split(target)
    assert (split.text_ids, split.codes, split.errors, split.ended) == (text, list(range(20)), [], True)


def test_the_tokenizer_survives_its_files(tmp_path) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    message = [{"role": "user", "content": "<|heard_3|><|heard_4|>"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    assert loaded.apply_chat_template(message, **options) == TOKENIZER.apply_chat_template(message, **options)
