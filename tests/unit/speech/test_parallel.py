"""Layouts with two streams: pairs there and back, the grammar against regular expressions, and what is refused."""

import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wavalign_ext.speech.layout import BOUNDARY, SPEECH, TEXT, LayoutError, load_layout
from wavalign_ext.speech.parallel import ParallelLayout

# blank, end, two words | two codes, two ends, blank, start | two units that the user says
NAMES = ["<blank>", "<end>", "a", "b", "<c0>", "<c1>", "<stop>", "<stop2>", "<silence>", "<start>", "<u0>", "<u1>"]
BLANK, END, A, B, C0, C1, STOP, STOP2, SILENCE, START, U0, U1 = range(12)
NODE: dict[str, Any] = {
    "name": "tiny",
    "type": "parallel",
    "speech": {"pattern": "<c{}>", "count": 2},
    "user_speech": {"pattern": "<u{}>", "count": 2},
    "streams": {
        "delay": 1,
        "text_blank": "<blank>",
        "text_end": "<end>",
        "audio_blank": "<silence>",
        "audio_start": "<start>",
    },
    "eos": ["<stop>", "<stop2>"],
}


def tokenizer(names: list[str] = NAMES) -> Any:
    return SimpleNamespace(get_vocab=lambda: {name: n for n, name in enumerate(names)}, chat_template=None)


def tiny(delay: int = 1, **more: Any) -> ParallelLayout:
    node = NODE | {"streams": NODE["streams"] | {"delay": delay}} | more
    resolved = load_layout(node).resolve(tokenizer(), len(NAMES))
    assert isinstance(resolved, ParallelLayout)
    return resolved


def streams(ids: list[int]) -> tuple[list[int], list[int]]:
    return ids[0::2], ids[1::2]


def test_an_answer_by_hand() -> None:
    layout = tiny(delay=2)
    target = layout.target([A, B, A], [1, 0, 0, 1])
    assert streams(target) == (
        [A, B, A, END, BLANK, BLANK, BLANK],
        [SILENCE, SILENCE, C1, C0, C0, C1, STOP],
    )
    # forced: silence in the delay, blanks behind the text's end, and the text of the frame that ends the answer
    assert streams(layout.drawn(target).tolist()) == (
        [True, True, True, True, False, False, False],
        [False, False, True, True, True, True, True],
    )
    assert layout.modality(target).tolist()[:6] == [TEXT, BOUNDARY, TEXT, BOUNDARY, TEXT, SPEECH]
    assert layout.modality([STOP, U1, START, BLANK]).tolist() == [BOUNDARY, SPEECH, BOUNDARY, TEXT]
    early = [A, SILENCE, B, SILENCE, A, C0, BLANK, STOP]  # the audio ends before the text: its last frame is forced
    assert streams(layout.drawn(early).tolist())[0] == [True, True, True, False]


@pytest.mark.parametrize("delay", [0, 1, 3, 6])
def test_every_length_comes_back(delay: int) -> None:
    """Every length around the edges: shorter than the delay, as long as it, and text that just fits its speech."""
    layout, fits, refused = tiny(delay), 0, 0
    for words, sounds in itertools.product(range(1, 12), range(1, 12)):
        text, codes = [A + n % 2 for n in range(words)], [n % 2 for n in range(sounds)]
        if words + 1 > delay + sounds:
            with pytest.raises(
                LayoutError, match=f"{words} text tokens and their end do not fit beside {sounds} codes"
            ):
                layout.target(text, codes)
            refused += 1
            continue
        target = layout.target(text, codes)
        assert len(target) == 2 * (delay + sounds + 1)
        found = layout.split(torch.tensor(target))
        assert (found.text_ids, found.codes, found.errors, found.ended) == (text, codes, [], True)
        drawn = layout.drawn(target)
        assert int(drawn.sum()) == (words + 1) + (sounds + 1)
        fits += 1
    assert fits > 20 and (refused > 20 or delay == 6)


def accepted(text: list[int], audio: list[int], delay: int) -> bool:
    """The grammar, written again: a regular expression per stream. Letters are those of the module's first comment."""
    words = "".join("_eab"[i] for i in text)
    sounds = "".join({C0: "c", C1: "c", STOP: "S", STOP2: "S", SILENCE: "_"}.get(i, "x") for i in audio)
    if "S" in sounds:
        return bool(re.fullmatch(r"[ab]+e_*_", words) and re.fullmatch("_" * delay + "c+S", sounds))
    return bool(re.fullmatch(r"[ab]*(e_*)?", words) and re.fullmatch(f"_{{0,{delay}}}|_{{{delay}}}c*", sounds))


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_split_accepts_exactly_the_grammar(delay: int) -> None:
    """All answers of up to four frames; words are the same to the grammar, and so are codes: one of each is taken."""
    layout, seen = tiny(delay), [0, 0]
    for count in range(5):
        for text in itertools.product([BLANK, END, A], repeat=count):
            for audio in itertools.product([C0, STOP, SILENCE] if count == 4 else range(C0, U1 + 1), repeat=count):
                if STOP in audio[:-1] or STOP2 in audio[:-1]:
                    continue  # padding behind an end is another matter
                ids = [i for frame in zip(text, audio, strict=True) for i in frame]
                good = accepted(list(text), list(audio), delay)
                assert (not layout.split(ids).errors) == good, (text, audio)
                seen[good] += 1
    assert min(seen) > 20


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([A, SILENCE, B], "half a frame: 1, first at position 2"),
        ([A, SILENCE, C0, END], "an audio id on the text stream: 1, first at position 2"),
        ([A, SILENCE, B, END], "a text id on the audio stream: 1, first at position 3"),
        ([A, C0], "speech within the delay: 1, first at position 1"),
        ([A, SILENCE, BLANK, C0], "a blank in the text: 1, first at position 2"),
        ([A, SILENCE, END, C0, B, C1], "text after its end: 1, first at position 4"),
        ([A, SILENCE, END, C0, END, C1], "a second end of the text: 1, first at position 4"),
        ([A, SILENCE, END, SILENCE], "a blank in the speech: 1, first at position 3"),
        ([A, SILENCE, END, U0], "the user's speech in a response: 1, first at position 3"),
        ([A, SILENCE, END, START], "a control token in the speech: 1, first at position 3"),
        ([A, SILENCE, B, C0, BLANK, STOP], "the text does not end: 1, first at position 5"),
        ([A, SILENCE, B, C0, END, STOP], "text beside the end: 1, first at position 4"),
        ([A, SILENCE, END, C0, BLANK, STOP, A], "tokens after the end: 1, first at position 6"),
        ([A, SILENCE, END, SILENCE, BLANK, STOP], "a blank in the speech: 1, first at position 3"),
        ([BLANK, STOP], "speech within the delay: 1, first at position 1"),
    ],
)
def test_an_error_is_named_with_its_place(ids: list[int], error: str) -> None:
    assert error in tiny().split(ids).errors


def test_what_is_said_is_kept_in_spite_of_errors() -> None:
    found = tiny().split([A, C1, END, C0, B, C0, BLANK, STOP2])
    assert (found.text_ids, found.codes, found.ended) == ([A, B], [1, 0, 0], True)


def test_a_prompt_has_blanks_beside_each_token() -> None:
    assert streams(tiny().prompt([A, U1, U0, START])) == ([A, BLANK, BLANK, BLANK], [SILENCE, U1, U0, START])
    with pytest.raises(LayoutError, match=r"a prompt ends with id \[2\], not with streams.audio_start \(id 9\)"):
        tiny().prompt([U0, A])


def test_frames_are_refused_where_they_are_none() -> None:
    with pytest.raises(LayoutError, match="3 ids are no pairs of text and audio: give an even number"):
        tiny().frames([A, C0, B])
    with pytest.raises(LayoutError, match="id 4 at position 2 of the text stream is an audio id"):
        tiny().frames([A, C0, C0, C1])
    assert tiny().padding == [BLANK, STOP] and tiny().split(tiny().padding).ended


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"streams": None}, "streams is missing: a parallel layout has speech, streams and eos"),
        (
            {"streams": {"delay": 1}},
            "is malformed: give a mapping with delay, text_blank, text_end, audio_blank, audio_s",
        ),
        ({"streams": NODE["streams"] | {"delay": -1}}, "streams.delay=-1: give a whole number of frames, 0 or more"),
        ({"streams": NODE["streams"] | {"text_end": "<stop>"}}, "streams.text_end='<stop>' (id 6) is not of the text"),
        ({"streams": NODE["streams"] | {"audio_blank": "<blank>"}}, "audio_blank='<blank>' (id 0) is not of the audio"),
        (
            {"streams": NODE["streams"] | {"audio_start": "<c0>"}},
            "audio_start='<c0>' (id 4) is not of the audio stream",
        ),
        ({"streams": NODE["streams"] | {"audio_start": "<silence>"}}, "are both token '<silence>': name two"),
        ({"streams": NODE["streams"] | {"text_end": "<nothing>"}}, "the tokenizer has no token '<nothing>'"),
        ({"eos": ["<end>"]}, "eos 0='<end>' (id 1) is not of the audio stream alone"),
        ({"eos": []}, "eos is missing"),
        ({"schedule": [[1, 2]]}, "schedule=((1, 2),): streams run side by side: take it out"),
        ({"user_speech": {"first_id": 2, "count": 2}}, "an id must be of one stream"),
        ({"type": "multi_codebook"}, "type 'multi_codebook' is not supported yet: use interleaved, parallel"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        load_layout(NODE | change).resolve(tokenizer(), len(NAMES))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_id_beyond_the_model_is_refused() -> None:
    with pytest.raises(LayoutError, match="token id 11 is beyond the model's vocabulary of 11"):
        load_layout(NODE).resolve(tokenizer(), 11)


@pytest.mark.parametrize(
    ("text", "codes", "message"),
    [
        ([], [0], "a response needs text and speech, not 0 text tokens and 1 codes"),
        ([A], [2], "code 2 is out of range: 0 to 1"),
        ([A, END], [0, 0], "text id 1 is an audio, blank or end token: take it out"),
        ([C0], [0, 0], "text id 4 is an audio, blank or end token: take it out"),
    ],
)
def test_what_is_no_answer_is_not_made_one(text: list[int], codes: list[int], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        tiny().target(text, codes)
