"""One id of the engine is one frame: a (text, audio) pair.

vLLM knows one id per position. Here that is ``audio · (T + 1) + text``, wrapped to int32, of a text index below T + 1
and an audio index below A + D. The last text index says "blank, because the text is over", the D last audio indices
"blank number k of the delay". So what may come next follows from the last id alone: chunked prefill, recomputation
after a preemption and the prefix cache carry both streams and the grammar's state, and the sampler has no memory.

Kimi-Audio: 152065 · 16410 = 2.5e9 pairs, below 2^32; an id may be negative. Letters: F frames, N requests.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LIMIT = 2**32  # of 32 bits


class Pairs:
    """Ids of one model; ``config`` is a :class:`wavalign_ext.parallel.config.TwoStreamConfig`, or has its fields."""

    def __init__(self, config: Any) -> None:
        self.text_vocab, self.audio_vocab, self.delay = config.text_vocab, config.audio_vocab, config.delay
        self.text_blank, self.text_end = config.text_blank, config.text_end
        # Audio by index here: an id less the first of the stream.
        self.audio_blank, self.audio_start = config.audio_blank - self.text_vocab, config.audio_start - self.text_vocab
        self.audio_end = [i - self.text_vocab for i in config.audio_end]
        self.over = self.text_vocab
        self.text_size, self.audio_size = self.text_vocab + 1, self.audio_vocab + self.delay
        if self.text_size * self.audio_size >= LIMIT:
            raise ValueError(
                f"{self.text_vocab} text and {self.audio_vocab} audio ids make more pairs than 32 bits hold: leave out "
                "ids that are never used"
            )

    def encode(self, text: Tensor, audio: Tensor) -> Tensor:
        """Indices to pair ids: int64 of the same shape, in the range of int32."""
        ids = audio.long() * self.text_size + text
        return ids - (ids >= LIMIT // 2) * LIMIT

    def decode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pair ids to text and audio indices."""
        unsigned = ids.long() & (LIMIT - 1)
        return unsigned % self.text_size, unsigned // self.text_size

    def true_ids(self, text: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Indices to the ids that the model embeds: aliases are blanks, audio ids begin behind the text's."""
        text = text.masked_fill(text == self.over, self.text_blank)
        return text, audio.masked_fill(audio >= self.audio_vocab, self.audio_blank) + self.text_vocab

    def forced(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What must follow pairs (N,): 1 where the text is over, else 0; which blank of the delay, 1 to D, else 0."""
        text, audio = self.decode(ids)
        over = (text == self.text_end) | (text == self.over)
        delay = torch.zeros_like(audio)
        if self.delay:
            delay += audio == self.audio_start
            within = (audio >= self.audio_vocab) & (audio < self.audio_size - 1)
            delay += torch.where(within, audio - self.audio_vocab + 2, 0)
        return over.long(), delay

    def from_flat(self, flat: Sequence[int]) -> list[int]:
        """Flat ids (2F,), a prompt or a prompt and the beginning of its answer, as pair ids (F,).

        Raises:
            ValueError: an odd number of ids, or an id of the other stream.
        """
        ids = torch.as_tensor(flat, dtype=torch.long)
        if len(ids) % 2:
            raise ValueError(f"{len(ids)} ids are no pairs of text and audio: give an even number")
        text, audio = ids[0::2], ids[1::2] - self.text_vocab
        if bool((text < 0).any()) or bool((text >= self.text_vocab).any()):
            raise ValueError(f"the text stream has an id that is not below {self.text_vocab}: streams are mixed up")
        if bool((audio < 0).any()) or bool((audio >= self.audio_vocab).any()):
            raise ValueError(f"the audio stream has an id that is not of its {self.audio_vocab}: streams are mixed up")
        begun = (audio == self.audio_start).nonzero()
        if len(begun):  # behind it is an answer, with the aliases that the sampler would have made
            first = int(begun[-1]) + 1
            ends = (text[first:] == self.text_end).nonzero()
            if len(ends):
                text[first + int(ends[0]) + 1 :] = self.over
            silent = min(self.delay, len(audio) - first)
            audio[first : first + silent] = self.audio_vocab + torch.arange(silent)
        return self.encode(text, audio).tolist()

    def to_flat(self, pair_ids: Sequence[int]) -> tuple[list[int], list[bool]]:
        """Pair ids (F,) as flat ids (2F,), and which of these were drawn, and not forced."""
        text, audio = self.decode(torch.as_tensor(pair_ids, dtype=torch.long))
        drawn = torch.stack([text != self.over, audio < self.audio_vocab], -1)
        return torch.stack(self.true_ids(text, audio), -1).flatten().tolist(), drawn.flatten().tolist()

    @property
    def stop_ids(self) -> list[int]:
        """The pairs that end an answer, one for each end token: the sampler makes their text "over"."""
        ends = torch.tensor(self.audio_end)
        return self.encode(torch.full_like(ends, self.over), ends).tolist()


def embedding_rows(config: Any, ids: Tensor) -> Tensor:
    """The embedding's row of each id of the joint vocabulary."""
    first = config.vocab_size - len(config.audio_rows)
    for number, row in enumerate(config.audio_rows):  # few; no table, which a captured graph could not be given
        ids = ids.masked_fill(ids == first + number, row)
    return ids


def heard_places(config: Any, audio_ids: Tensor) -> Tensor:
    """Where the user's codes stand, which an encoder's vectors are added to: bool, as joint audio ids (…, F).

    Codes whose last control token is ``media_begin``; those of an answer have another one before them. Rows may be
    packed one behind the other.
    """
    code = (audio_ids >= config.text_vocab) & (audio_ids < config.text_vocab + config.codes)
    place = torch.arange(audio_ids.shape[-1], device=audio_ids.device).expand_as(audio_ids)
    control = place.masked_fill(code, -1).cummax(-1).values
    return code & (control >= 0) & (audio_ids.gather(-1, control.clamp(min=0)) == config.media_begin)
