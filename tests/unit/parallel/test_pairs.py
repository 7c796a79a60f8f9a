"""One id for a pair: there and back over all edges, its state against the layout's grammar, and what is refused."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from two_streams import KIMI, config

from wavalign_ext.parallel.pairs import Pairs, embedding_rows
from wavalign_ext.speech.parallel import ParallelLayout

KIMI_LIKE = {**KIMI, "ends": 2}


@pytest.mark.parametrize("shape", [{}, {"delay": 0}, {"delay": 1, "ends": 1}, KIMI_LIKE])
def test_every_edge_comes_back_within_32_bits_and_never_as_minus_one(shape: dict[str, Any]) -> None:
    pairs = Pairs(config(**shape))
    text = torch.tensor([0, 1, 2, 3, pairs.text_vocab - 1, pairs.over])
    edges = {0, 1, *pairs.audio_end, pairs.audio_blank, pairs.audio_start, pairs.audio_vocab - 1}
    edges |= {pairs.audio_vocab, pairs.audio_size - 1} if pairs.delay else set()
    middle = 2**31 // pairs.text_size  # where ids become negative
    edges |= {middle, middle + 1} if middle + 1 < pairs.audio_size else set()
    grid_text, grid_audio = torch.meshgrid(text, torch.tensor(sorted(edges)), indexing="ij")
    ids = pairs.encode(grid_text, grid_audio)
    assert len(ids.unique()) == ids.numel() and -(2**31) <= ids.min() and ids.max() < 2**31 and -1 not in ids
    assert torch.equal(ids.to(torch.int32).long(), ids)  # what vLLM stores
    for back, wanted in zip(pairs.decode(ids.to(torch.int32)), (grid_text, grid_audio), strict=True):
        assert torch.equal(back, wanted)
    assert (ids < 0).any() == (shape is KIMI_LIKE)


def test_pairs_that_32_bits_do_not_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="500000 text and 9044 audio ids make more pairs than 32 bits hold"):
        Pairs(config(text=500000, codes=9000, ends=2))


def layout_of(c: Any) -> ParallelLayout:
    whole: Any = SimpleNamespace(name="tiny")
    return ParallelLayout(
        layout=whole,
        speech_start=c.text_vocab,
        speech_end=min(c.audio_end),
        user_speech_start=c.audio_start + 1,
        user_speech_end=c.vocab_size,
        begin_id=None,
        end_id=None,
        eos_ids=tuple(c.audio_end),
        pad_id=None,
        schedule=(),
        delay=c.delay,
        text_blank=c.text_blank,
        text_end=c.text_end,
        audio_blank=c.audio_blank,
        audio_start=c.audio_start,
    )


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_what_the_state_lets_be_said_is_what_the_layout_has_no_fault_with(delay: int) -> None:
    """Random answers, drawn as the sampler draws: the state is read from the last pair alone."""
    c = config(delay=delay)
    pairs, layout, rng, ended = Pairs(c), layout_of(c), random.Random(delay), 0
    for _ in range(300):
        prompt = [c.text_blank, c.vocab_size - 1, c.text_blank, c.audio_start]
        ids = pairs.from_flat(prompt)
        for _ in range(rng.randint(1, 20)):
            over, silent = (int(state[0]) for state in pairs.forced(torch.tensor(ids[-1:])))
            text = pairs.over if over else rng.choice([c.text_end, 7, 8])
            audio = c.audio_vocab + silent - 1 if silent else rng.randrange(c.audio_said)
            if audio in pairs.audio_end or (rng.random() < 0.1 and not silent):
                text, audio = pairs.over, rng.choice(pairs.audio_end)
            ids.append(int(pairs.encode(torch.tensor(text), torch.tensor(audio))))
            if ids[-1] in pairs.stop_ids:
                break
        flat, drawn = pairs.to_flat(ids[2:])
        assert drawn == layout.drawn(flat).tolist()
        split = layout.split(flat)
        whole = split.text_ids and split.codes and c.text_end in flat
        assert not split.ended or bool(split.errors) == (not whole)
        assert split.ended or split.errors == []
        ended += split.ended
        # An answer that goes on from its middle has the state that it had.
        for cut in range(len(ids) - 2):
            again = pairs.from_flat(prompt + flat[: 2 * cut])
            assert again == ids[: 2 + cut], (flat, cut)
    assert 50 < ended < 300


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ([1, 300, 2], "3 ids are no pairs of text and audio: give an even number"),
        ([300, 300], "the text stream has an id that is not below 300"),
        ([1, 2], "the audio stream has an id that is not of its 544"),
        ([1, 844], "the audio stream has an id that is not of its 544"),
    ],
)
def test_what_is_no_pair_is_refused(flat: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pairs(config()).from_flat(flat)


def test_control_tokens_of_the_audio_may_share_rows_of_the_embedding() -> None:
    c = config(shared_rows=3)
    assert c.embedding_rows == c.vocab_size - 3
    ids = torch.tensor([c.vocab_size - 4, c.vocab_size - 3, c.vocab_size - 2, c.vocab_size - 1, 0])
    assert embedding_rows(c, ids).tolist() == [c.vocab_size - 4, 5, 6, 7, 0]
