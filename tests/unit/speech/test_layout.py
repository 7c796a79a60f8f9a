"""Layouts: names to ids, the schedule, and the way back from what a model says."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_layout import BASE, SPECIALS, TOKENIZER, WORDS, make_tokenizer

from wavalign_ext.speech.layout import (
    BOUNDARY,
    SPEECH,
    TEXT,
    LayoutError,
    ResolvedLayout,
    load_layout,
)

AROUND = {"begin": "<|begin_of_audio|>", "end": "<|end_of_audio|>"}
NO_BOUNDARIES = {"begin": None, "end": None}


def ids_of(*names: str) -> list[int]:
    """Ids of short names: w3, a3 (speech), h3 (heard), B and E (boundaries), eos, pad."""
    short = {"B": "<|begin_of_audio|>", "E": "<|end_of_audio|>", "eos": "<|im_end|>", "pad": "<|endoftext|>"}
    short |= {f"a{i}": f"<|audio_{i}|>" for i in range(64)} | {f"h{i}": f"<|heard_{i}|>" for i in range(16)}
    vocabulary = TOKENIZER.get_vocab()
    return [vocabulary[short.get(name, name)] for name in names]


def resolve(**changes: object) -> ResolvedLayout:
    return load_layout({**BASE, **changes}).resolve(TOKENIZER)


def runs(layout: ResolvedLayout, ids: list[int]) -> str:
    """'t3' for three text tokens, 'A8' for eight audio tokens with boundaries, as docs/layouts.md writes them."""
    found: list[list] = []
    for i in ids:
        name = "t" if i <= WORDS else "A"  # by id, so that it does not lean on modality()
        if found and found[-1][0] == name:
            found[-1][1] += 1
        else:
            found.append([name, 1])
    return " ".join(f"{name}{count}" for name, count in found)


# --- the schedule -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "text", "codes", "expected"),
    [
        ([[1, 4], [3, 8], [4, 10]], 10, 40, "t1 A4 t3 A8 t4 A10 t2 A26"),
        ([[1, 10], [4, 10]], 10, 40, "t1 A10 t4 A10 t4 A10 t1 A18"),
        ([[1, 10], [4, 10]], 10, 10, "t1 A10 t9 A4"),  # speech runs out: text joins the last chunk
        ([[1, 10], [4, 10]], 10, 8, "t10 A10"),
        ([[1, 10], [4, 10]], 10, 1, "t10 A3"),
        ([[1, 10], [4, 10]], 1, 40, "t1 A42"),
        ([[1, 10], [4, 10]], 5, 16, "t1 A10 t4 A10"),
        ([[13, 26]], 1, 1, "t1 A3"),
    ],
)
def test_turns_are_vitas(schedule: list, text: int, codes: int, expected: str) -> None:
    layout = resolve(schedule=schedule)
    assert runs(layout, layout.interleave(range(1, text + 1), range(codes))) == expected


def test_golden_order_of_tokens() -> None:
    target = resolve(schedule=[[1, 4]]).target(ids_of("w1", "w2"), [5, 6, 7])
    assert target == ids_of("w1", "B", "a5", "a6", "E", "w2", "B", "a7", "E", "eos")


def test_a_count_without_boundaries_is_all_codes() -> None:
    layout = resolve(schedule=[[2, 4]], counts_boundaries=False)
    assert runs(layout, layout.interleave(range(1, 5), range(8))) == "t2 A6 t2 A6"
    assert layout.schedule == ((2, 4),) and resolve(schedule=[[2, 4]]).schedule == ((2, 2),)
    bare = resolve(schedule=[[13, 26]], **NO_BOUNDARIES)
    assert runs(bare, bare.interleave(range(1, 27), range(52))) == "t13 A26 t13 A26"


def vita_reference(text: list[int], codes: list[int], schedule: list) -> list[tuple[list[int], list[int]]]:
    """VITA's rule stated another way: cut both, keep the smaller number of pieces, join the rest."""

    def cut(items: list[int], sizes: list[int]) -> list[list[int]]:
        edges = [0]
        while edges[-1] < len(items):
            edges.append(edges[-1] + (sizes[len(edges) - 1] if len(edges) <= len(sizes) else sizes[-1]))
        return [items[a:b] for a, b in zip(edges, edges[1:], strict=False)]

    texts, speeches = cut(text, [t for t, _ in schedule]), cut(codes, [a - 2 for _, a in schedule])
    count = min(len(texts), len(speeches))
    tails = sum(texts[count - 1 :], []), sum(speeches[count - 1 :], [])
    return [*zip(texts[: count - 1], speeches[: count - 1], strict=True), tails]


schedules = st.lists(st.tuples(st.integers(1, 5), st.integers(3, 9)), min_size=1, max_size=4)
texts = st.lists(st.integers(1, WORDS), min_size=1, max_size=30)
speeches = st.lists(st.integers(0, 63), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(schedules, texts, speeches, st.booleans())
def test_split_gives_back_what_interleave_took(schedule: list, text: list, codes: list, bounds: bool) -> None:
    layout = resolve(schedule=schedule, **({} if bounds else NO_BOUNDARIES))
    split = layout.split(layout.target(text, codes))
    assert (split.text_ids, split.codes, split.errors, split.ended) == (text, codes, [], True)
    assert all(words and sounds for words, sounds in split.chunks)
    if bounds:
        assert split.chunks == vita_reference(text, codes, schedule)


@settings(max_examples=100, deadline=None)
@given(schedules, texts, speeches, st.booleans(), st.integers(0, 200))
def test_a_truncated_response_keeps_the_schedule(
    schedule: list, text: list, codes: list, bounds: bool, cut: int
) -> None:
    layout = resolve(schedule=schedule, **({} if bounds else NO_BOUNDARIES))
    split = layout.split(layout.interleave(text, codes)[:cut])
    assert not split.ended and [e for e in split.errors if "the last chunk does not end" not in e] == []
    assert split.text_ids == text[: len(split.text_ids)] and split.codes == codes[: len(split.codes)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(ids_of("w1", "w2", "a1", "a2", "h1", "B", "E", "pad", "eos")), max_size=24))
def test_split_takes_anything_and_errs_when_interleave_would_differ(tokens: list[int]) -> None:
    layout = resolve(schedule=[[1, 3], [2, 4]])
    split = layout.split(tokens)
    if split.ended and not split.errors:
        written = layout.target(split.text_ids, split.codes)
        assert tokens[: len(written)] == written and set(tokens[len(written) :]) <= {layout.pad_id}
    assert split.text_ids == [i for chunk in split.chunks for i in chunk[0]]
    assert split.codes == [code for chunk in split.chunks for code in chunk[1]]


# --- modality -----------------------------------------------------------------------------------------------


def test_modality_of_every_kind_of_token() -> None:
    layout = resolve()
    ids = ids_of("w0", "w39", "a0", "a63", "h0", "h15", "B", "E", "eos", "pad")
    expected = [TEXT, TEXT, SPEECH, SPEECH, SPEECH, SPEECH, BOUNDARY, BOUNDARY, TEXT, TEXT]
    found = layout.modality(ids)
    assert found.tolist() == expected and found.dtype == torch.int8
    grid = layout.modality(torch.tensor(ids).reshape(2, 5))
    assert grid.tolist() == [expected[:5], expected[5:]] and layout.modality([]).shape == (0,)


@pytest.mark.parametrize("changes", [{}, NO_BOUNDARIES, {"user_speech": None}], ids=["all", "bare", "one range"])
def test_modality_agrees_with_names_over_the_whole_vocabulary(changes: dict) -> None:
    """One id off at either end of a range, a lost boundary or a lost heard range turns this red."""
    layout = resolve(**changes)
    boundaries = {layout.layout.begin, layout.layout.end} - {None}
    prefixes = ("<|audio_",) if "user_speech" in changes else ("<|audio_", "<|heard_")
    vocabulary = TOKENIZER.get_vocab()
    expected = {
        i: BOUNDARY if name in boundaries else SPEECH if name.startswith(prefixes) else TEXT
        for name, i in vocabulary.items()
    }
    ids = torch.tensor([-100, *sorted(expected), len(vocabulary)])
    assert layout.modality(ids).tolist() == [TEXT, *(expected[i] for i in sorted(expected)), TEXT]


# --- what a model may say -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        ("w1 a1 a2 eos", "speech outside a chunk: 2, first at position 1"),
        ("w1 B w2 a1 E eos", "text inside a speech chunk: 1, first at position 2"),
        ("w1 B a1 eos", "the last chunk does not end: 1, first at position 1"),
        ("w1 E eos", "a chunk ends that did not begin: 1"),
        ("w1 B B a1 E eos", "a chunk begins inside a chunk: 1"),
        ("w1 B E eos", "a chunk without speech: 1"),
        ("w1 B a1 h2 E eos", "the user's speech in a response: 1, first at position 3"),
        ("w1 B a1 E eos pad w2 pad", "tokens after the end: 1, first at position 6"),
        ("w1 B a1 E w2 B a1 E eos", "schedule violated: turn 1 has 1 text tokens, 1 codes, not 1 and 2"),
        ("w1 w2 B a1 a2 a3 E eos", "schedule violated: turn 1 has 2 text tokens, 3 codes"),
        ("w1 B a1 a2 E w2 eos", "schedule violated: turn 2 has 1 text tokens, 0 codes"),
        ("B a1 a2 E eos", "schedule violated: turn 1 has 0 text tokens"),
        ("eos", "schedule violated: the response is empty"),
    ],
)
def test_split_names_what_a_model_did_wrong(tokens: str, error: str) -> None:
    split = resolve().split(ids_of(*tokens.split()))
    assert len(split.errors) == 1 and split.errors[0].startswith(error), split.errors
    assert split.ended


def test_what_broke_the_layout_is_kept_in_its_stream() -> None:
    split = resolve().split(torch.tensor(ids_of("a9", "w1", "B", "w2", "a3", "h1", "E")))
    assert (split.text_ids, split.codes, split.ended) == (ids_of("w1", "w2"), [9, 3], False)
    split = resolve().split(ids_of("w1", "B", "a1", "w2", "a2", "E", "eos"))
    assert split.chunks == [(ids_of("w1", "w2"), [1, 2])]  # an open chunk is one turn


def test_padding_may_follow_the_end() -> None:
    assert resolve().split(ids_of("w1", "B", "a1", "E", "eos", "pad", "pad")).errors == []


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": [[0, 8]]}, r"pair \(0, 8\).*at least 1 text token"),
        ({"schedule": [[1, 8], [1, 2]]}, r"pair \(1, 2\).*more than 2 audio"),
        ({"schedule": [[1, 0]], **NO_BOUNDARIES}, "more than 0 audio"),
        ({"schedule": []}, "schedule is empty"),
        ({"schedule": [1, 10]}, "pairs of whole numbers"),
        ({"schedule": [[1, 2.5]]}, "pairs of whole numbers"),
        ({"user_speech": {"pattern": "<|audio_{}|>", "count": 8}}, "overlap"),
        ({"user_speech": {"first_id": 60, "count": 16}}, "overlap|lies in"),
        ({"user_speech": "whatever"}, "user_speech='whatever'"),
        ({"eos": ["<|audio_3|>"]}, r"'<\|audio_3\|>'.*lies in the speech range"),
        ({"pad": "<|heard_3|>"}, "lies in the user_speech range"),
        ({"eos": []}, "eos is empty"),
        ({"eos": ["<|eos|>"]}, r"no token '<\|eos\|>'"),
        ({"begin": "<|nothing|>"}, r"no token '<\|nothing\|>'"),
        ({"begin": None}, "name both or neither"),
        ({"end": "<|begin_of_audio|>"}, "name two"),
        ({"end": "<|im_end|>"}, "not eos or pad"),
        ({"type": "separate"}, "'separate' is not supported yet: use interleaved, parallel"),
        ({"type": "braided"}, "'braided' is not known: use interleaved, parallel"),
        ({"user_speech": "continuous"}, "continuous and encoder belong together"),
        ({"speech": None}, "speech is missing"),
        ({"speech": {"pattern": "<|audio|>", "count": 8}}, "pattern='<|audio|>'"),
        ({"speech": {"pattern": "<|audio_{}|>", "count": 0}}, "count=0"),
        ({"speech": {"pattern": "<|audio_{}|>", "count": 8, "first_id": 9}}, "first_id=9.*no pattern"),
        ({"speech": {"patern": "<|audio_{}|>"}}, "speech=.*patern.*give pattern and count"),
        ({"sped": 1}, "key 'sped' is not known: its keys are name, speech"),
        ({"chat": {"heard": "{}"}}, "chat: key 'heard' is not known: its keys are system, system_text, user_speech"),
        ({"chat": "You are Luke."}, "chat='You are Luke.' is malformed: give a mapping with system"),
        ({"chat": {"system": ["You are Luke."]}}, r"chat: system=\['You are Luke.'\] is no text"),
        ({"chat": {"user_speech": "<|begin_of_audio|>{}"}}, "user_speech=.* is malformed: give begin and end by name"),
        ({"chat": {"user_speech": {**AROUND, "behind": "w1"}}}, "chat.user_speech: key 'behind' is not known"),
        ({"chat": {"user_speech": {**AROUND, "end": "<|nothing|>"}}}, r"no token '<\|nothing\|>'"),
        ({"chat": {"user_speech": {**AROUND, "end": "<|heard_3|>"}}}, "lies in the user_speech range"),
    ],
)
def test_layouts_that_cannot_work_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(LayoutError, match=message) as caught:
        resolve(**changes)
    assert "\n" not in str(caught.value) and "layout 'test'" in str(caught.value)


def test_a_tokenizer_without_the_speech_tokens_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"no token '<\|audio_63\|>'"):
        load_layout(BASE).resolve(make_tokenizer(speech=63))
    with pytest.raises(LayoutError, match=r"no token '<\|audio_9\|>'"):
        load_layout(BASE).resolve(make_tokenizer(skip="<|audio_9|>"))
    moved = make_tokenizer(specials=(*SPECIALS, "<|audio_9|>"))
    with pytest.raises(LayoutError, match=r"'<\|audio_9\|>' has id \d+, not consecutive"):
        load_layout(BASE).resolve(moved)


def test_ids_beyond_the_model_are_refused() -> None:
    load_layout(BASE).resolve(TOKENIZER, vocab_size=len(TOKENIZER))
    with pytest.raises(LayoutError, match=f"beyond the model's vocabulary of {len(TOKENIZER) - 1}"):
        load_layout(BASE).resolve(TOKENIZER, vocab_size=len(TOKENIZER) - 1)


@pytest.mark.parametrize(
    ("text", "codes", "message"),
    [
        ([], [1], "0 text tokens and 1 codes"),
        ([1], [], "1 text tokens and 0 codes"),
        ([1], [64], "code 64 is out of range: 0 to 63"),
        ([1], [-1], "code -1"),
        (ids_of("w1", "eos", "w2"), [1], "boundary or eos token"),
        (ids_of("w1", "a3"), [1], "is an audio"),
    ],
)
def test_targets_that_are_not_whole_are_refused(text: list, codes: list, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        resolve().target(text, codes)


def test_the_users_speech_is_written_by_name() -> None:
    assert resolve().user_speech_prompt([3, 9]) == "<|heard_3|><|heard_9|>"
    assert resolve(user_speech=None).user_speech_prompt([3]) == "<|audio_3|>"
    for codes in ([], [16]):
        with pytest.raises(LayoutError):
            resolve().user_speech_prompt(codes)
    with pytest.raises(LayoutError, match="no names"):
        resolve(user_speech={"first_id": 1000, "count": 4}).user_speech_prompt([1])


# --- prompts ------------------------------------------------------------------------------------------------


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "user",
    [
        "<|heard_3|>",
        "<|begin_of_audio|><|heard_3|>",
        "<|heard_3|><|end_of_audio|>",
        "<|begin_of_audio|>w1<|heard_3|><|end_of_audio|>",
        "<|begin_of_audio|><|heard_3|><|end_of_audio|><|heard_3|>",
        "<|end_of_audio|><|heard_3|><|begin_of_audio|>",
    ],
)
def test_a_prompt_with_speech_out_of_its_tokens_is_refused(user: str) -> None:
    layout = resolve(chat={"user_speech": AROUND})
    with pytest.raises(LayoutError, match=r"^f.parquet, row 3: .*not between <\|begin.*run wavalign prepare") as caught:
        layout.check_prompt([said("system", "w1"), said("user", user)], TOKENIZER, "f.parquet, row 3")
    assert "\n" not in str(caught.value)
    resolve().check_prompt([said("user", user)], TOKENIZER, "a layout without such tokens")


def test_a_prompt_as_the_layout_writes_it_passes() -> None:
    layout = resolve(user_speech=None, begin=None, end=None, chat={"user_speech": AROUND})
    heard = layout.user_speech_prompt([3, 9, 9])
    answer = said("assistant", "w1<|audio_3|><|audio_4|>")  # without boundaries, as the layout has it
    messages = [said("system", f"w1{heard}"), said("user", f"{heard}w1{heard}"), answer, said("user", heard)]
    layout.check_prompt(messages, TOKENIZER, "here")
    with pytest.raises(LayoutError):
        layout.check_prompt([*messages, said("user", "<|audio_3|>")], TOKENIZER, "here")


def test_a_tokenizer_with_another_chat_template_is_refused() -> None:
    tokenizer = make_tokenizer()
    template = "{% for m in messages %}{{ m.role }} {{ m.content }};{% endfor %}"
    layout = load_layout({**BASE, "chat": {"template": template}})
    layout.resolve(tokenizer)  # it has none
    tokenizer.chat_template = template.replace("m.", "message.").replace("for m ", "for message ")
    layout.resolve(tokenizer)  # the same in other words
    for other in ("{{ 'system w0;' if messages[0].role != 'system' }}" + template, template.replace(";", "")):
        tokenizer.chat_template = other
        with pytest.raises(LayoutError, match="chat template writes '.*'user u;': convert the model again") as caught:
            layout.resolve(tokenizer)
        assert "\n" not in str(caught.value)
        load_layout(BASE).resolve(tokenizer)


def test_it_imports_without_verl_or_triton() -> None:
    blocked = "import sys; sys.modules.update(verl=None, triton=None); import wavalign_ext.speech.layout"
    subprocess.run([sys.executable, "-c", blocked], check=True)
