"""Layouts of type ``parallel``: text and speech on two streams of equal length, the speech a few frames late.

An answer of F frames travels flat, ``[text_1, audio_1, text_2, audio_2, …]`` (2F ids of one joint vocabulary), so that
rows, masks, weights and metrics are those of any other layout. Audio ids begin with the first code, so an id says by
itself which stream it belongs to. The grammar of an answer, D being the delay:

    text    t t t … t end  _  _  _  _  _       _: blank
    audio   _ _ _ c c c c  c  c  c  c  eos     the first D blanks, and what follows ``end``, are forced

Forced ids are not drawn, so they have no log-prob and no loss: :meth:`ParallelLayout.drawn`.
Source: ``_generate_loop`` of kimia_infer/api/kimia.py in MoonshotAI/Kimi-Audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wavalign_ext.speech.layout import BOUNDARY, SPEECH, TEXT, Layout, ResolvedLayout
from wavalign_ext.speech.response import Split
from wavalign_ext.speech.token_names import LayoutError, TokenRange, check_size, id_of, resolve_ranges


@dataclass(frozen=True, kw_only=True)
class ParallelLayout(ResolvedLayout):
    """A parallel layout in the ids of one tokenizer; audio ids are those from ``speech_start`` on."""

    delay: int
    text_blank: int
    text_end: int
    audio_blank: int
    audio_start: int

    def modality(self, ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """TEXT, SPEECH or BOUNDARY per id: int8, same shape. What is on the audio stream and no code is BOUNDARY."""
        ids = torch.as_tensor(ids)
        kinds = torch.where(ids < self.speech_start, TEXT, BOUNDARY).to(torch.int8)
        kinds.masked_fill_((ids >= self.speech_start) & (ids < self.speech_end), SPEECH)
        return kinds.masked_fill_((ids >= self.user_speech_start) & (ids < self.user_speech_end), SPEECH)

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """A prompt (P,) as the chat template writes it, as flat frames: a blank beside each token.

        An earlier answer with speech, as :meth:`interleave` has it, is frames already: text before a code or blank.

        Raises:
            LayoutError: it does not end with ``audio_start``, which an answer begins after.
        """
        ids = [int(i) for i in ids]
        if not ids or ids[-1] != self.audio_start:
            raise LayoutError(
                f"layout {self.layout.name!r}: a prompt ends with id {ids[-1:]}, not with streams.audio_start (id "
                f"{self.audio_start}): correct the tokenizer's chat template"
            )
        wide: list[int] = []
        for i, after in zip(ids, [*ids[1:], self.audio_start], strict=True):
            if i >= self.speech_start:
                wide += [self.text_blank, i] if len(wide) % 2 == 0 else [i]
            else:
                spoken = after == self.audio_blank or self.speech_start <= after < self.speech_end
                wide += [i] if spoken else [i, self.audio_blank]
        return wide

    def drawn(self, ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Which ids of an answer (N,) are sampled, and not forced: bool (N,). N is even, see :meth:`frames`."""
        text, audio = self.frames(ids)
        count = torch.arange(len(text))
        over = (text == self.text_end).cumsum(0) - (text == self.text_end).long()  # ends before this frame
        last = torch.isin(audio, torch.tensor(self.eos_ids))  # the answer ends here, and its text with it
        return torch.stack([(over == 0) & ~last, count >= self.delay], -1).flatten()

    def frames(self, ids: torch.Tensor | Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Text and audio ids (F,) of flat ones (2F,).

        Raises:
            LayoutError: an odd number of ids, or an id of the other stream.
        """
        ids, where = torch.as_tensor(ids), f"layout {self.layout.name!r}"
        if len(ids) % 2:
            raise LayoutError(f"{where}: {len(ids)} ids are no pairs of text and audio: give an even number")
        strange = ((ids >= self.speech_start) != (torch.arange(len(ids)) % 2 == 1)).nonzero()
        if len(strange):
            at = int(strange[0])
            here, its = ("text", "audio")[:: 1 if at % 2 == 0 else -1]
            raise LayoutError(f"{where}: id {int(ids[at])} at position {at} of the {here} stream is an {its} id")
        return ids[0::2], ids[1::2]

    @property
    def padding(self) -> list[int]:
        """The shortest row: one frame."""
        return [self.text_blank, self.eos_ids[0]]

    def interleave(self, text_ids: Sequence[int], codes: Sequence[int]) -> list[int]:
        """An answer (2 · (D + C),) without its last frame: ``text_ids`` (T,), its end, and ``codes`` (C,), D late.

        Raises:
            LayoutError: empty text or codes, a code out of range, a text id that is none, or more text than the speech
                has frames for: T + 1 > D + C.
        """
        where = f"layout {self.layout.name!r}"
        text, speech = [int(i) for i in text_ids], [int(code) for code in codes]
        if not text or not speech:
            found = f"{len(text)} text tokens and {len(speech)} codes"
            raise LayoutError(f"{where}: a response needs text and speech, not {found}: fix or drop the row")
        self.check_codes(speech)
        for i in text:
            if not 0 <= i < self.speech_start or i in (self.text_blank, self.text_end):
                raise LayoutError(f"{where}: text id {i} is an audio, blank or end token: take it out")
        length = self.delay + len(speech)
        if len(text) + 1 > length:
            raise LayoutError(
                f"{where}: {len(text)} text tokens and their end do not fit beside {len(speech)} codes and a delay of "
                f"{self.delay}: drop the row, or record it more slowly"
            )
        text_stream = [*text, self.text_end, *[self.text_blank] * (length - len(text) - 1)]
        audio_stream = [*[self.audio_blank] * self.delay, *(self.speech_start + code for code in speech)]
        return [i for frame in zip(text_stream, audio_stream, strict=True) for i in frame]

    def target(self, text_ids: Sequence[int], codes: Sequence[int]) -> list[int]:
        """A supervised target: :meth:`interleave`, whose errors it raises, and the frame that ends it."""
        return [*self.interleave(text_ids, codes), self.text_blank, self.eos_ids[0]]

    def split(self, ids: torch.Tensor | Sequence[int]) -> Split:
        """The inverse of :meth:`interleave`, for anything that a model may say (N,); never raises.

        The first end token of the audio stream ends the answer; padding may follow. A text token behind the text's end
        is kept as text, speech within the delay as speech, and ``errors`` names each.
        """
        tokens = [int(i) for i in (ids.tolist() if isinstance(ids, torch.Tensor) else ids)]
        stop = next((n for n, i in enumerate(tokens) if i in self.eos_ids), len(tokens))
        ended = stop < len(tokens)
        text, codes, found = self._walk(tokens[: stop + 1])
        if after := [n for n in range(stop + 1, len(tokens)) if tokens[n] != self.pad_id]:
            found["tokens after the end"] = after
        if not ended and len(tokens) % 2:
            found["half a frame"] = [len(tokens) - 1]
        errors = [f"{name}: {len(at)}, first at position {at[0]}" for name, at in found.items()]
        if ended and not (text and codes):
            errors.append(f"the response is empty: {len(text)} text tokens, {len(codes)} codes")
        return Split(text, codes, errors, ended, [(text, codes)] if text or codes else [])

    def _walk(self, tokens: list[int]) -> tuple[list[int], list[int], dict[str, list[int]]]:
        """Text ids, codes, and the positions of each kind of error, of an answer up to its end token."""
        text: list[int] = []
        codes: list[int] = []
        found: dict[str, list[int]] = {}
        over = False
        for n, i in enumerate(tokens):
            last, is_audio = i in self.eos_ids, i >= self.speech_start
            if is_audio != bool(n % 2):
                error = "an audio id on the text stream" if is_audio else "a text id on the audio stream"
            elif is_audio:
                error = self._audio_error(i, n // 2, last, codes)
            else:
                error, over = self._text_error(i, tokens[n + 1 : n + 2], over, text)
            if last and not over:
                found.setdefault("the text does not end", []).append(n)
            if error:
                found.setdefault(error, []).append(n)
        return text, codes, found

    def _text_error(self, i: int, beside: list[int], over: bool, text: list[int]) -> tuple[str | None, bool]:
        """What is wrong with an id of the text stream, and whether the text is over; words are added to ``text``."""
        last = bool(beside) and beside[0] in self.eos_ids  # forced to be blank, whatever the text's state is
        if i == self.text_blank:
            return None if over or last else "a blank in the text", over
        if i == self.text_end:
            return "a second end of the text" if over else "text beside the end" if last else None, True
        text.append(i)
        return "text after its end" if over else "text beside the end" if last else None, over

    def _audio_error(self, i: int, frame: int, last: bool, codes: list[int]) -> str | None:
        """What is wrong with an id of the audio stream; a code is added to ``codes``."""
        if i == self.audio_blank:
            return None if frame < self.delay else "a blank in the speech"
        if self.speech_start <= i < self.speech_end:
            codes.append(i - self.speech_start)
        elif self.user_speech_start <= i < self.user_speech_end:
            return "the user's speech in a response"
        elif not last:
            return "a control token in the speech"
        return "speech within the delay" if frame < self.delay else None


def resolve(layout: Layout, tokenizer: Any, vocab_size: int | None) -> ParallelLayout:
    """:meth:`Layout.resolve` of a parallel layout.

    Raises:
        LayoutError: also for a token of one stream that lies in the other's ids.
    """
    where, streams = f"layout {layout.name!r}", layout.streams
    if streams is None or layout.speech is None or not layout.eos:
        lacks = "streams" if streams is None else "speech" if layout.speech is None else "eos"
        raise LayoutError(f"{where}: {lacks} is missing: a parallel layout has speech, streams and eos")
    for key in ("schedule", "begin", "end"):
        if getattr(layout, key):
            raise LayoutError(f"{where}: {key}={getattr(layout, key)!r}: streams run side by side: take it out")
    vocabulary = tokenizer.get_vocab()
    heard = layout.user_speech if isinstance(layout.user_speech, TokenRange) else None
    speech, user_speech = resolve_ranges(layout.speech, heard, vocabulary, where)
    around = layout.chat.user_speech
    audio = {"streams.audio_blank": streams.audio_blank, "streams.audio_start": streams.audio_start}
    audio |= {f"eos {number}": name for number, name in enumerate(layout.eos)}
    audio |= {"chat.user_speech.begin": around.begin, "chat.user_speech.end": around.end} if around else {}
    text = {"streams.text_blank": streams.text_blank, "streams.text_end": streams.text_end}
    text |= {"pad": layout.pad} if layout.pad else {}
    ids = {key: id_of(name, vocabulary, where) for key, name in (audio | text).items()}
    _check_streams(where, speech, user_speech, audio, text, ids)
    check_size(where, max(speech[-1], user_speech[-1], *ids.values()), vocab_size)
    layout.chat.check_template(tokenizer, where)
    return ParallelLayout(
        layout=layout,
        speech_start=speech.start,
        speech_end=speech.stop,
        user_speech_start=user_speech.start,
        user_speech_end=user_speech.stop,
        begin_id=None,
        end_id=None,
        eos_ids=tuple(ids[f"eos {number}"] for number in range(len(layout.eos))),
        pad_id=ids.get("pad"),
        schedule=(),
        around_user=(ids["chat.user_speech.begin"], ids["chat.user_speech.end"]) if around else None,
        delay=streams.delay,
        text_blank=ids["streams.text_blank"],
        text_end=ids["streams.text_end"],
        audio_blank=ids["streams.audio_blank"],
        audio_start=ids["streams.audio_start"],
    )


def _check_streams(
    where: str, speech: range, user_speech: range, audio: dict[str, str], text: dict[str, str], ids: dict[str, int]
) -> None:
    """Each id is of one stream, and each name of another id."""
    if user_speech != speech and user_speech.start < speech.stop:
        problem = f"user_speech ids {user_speech} are not above the speech ids {speech}"
        raise LayoutError(f"{where}: {problem}: an id must be of one stream; audio ids begin with the first code")
    for key, name in (audio | text).items():
        wrong = key in text and ids[key] >= speech.start or key in audio and ids[key] < speech.stop
        if wrong or ids[key] in user_speech:
            stream = "text" if key in text else "audio"
            raise LayoutError(
                f"{where}: {key}={name!r} (id {ids[key]}) is not of the {stream} stream alone: audio ids begin with "
                f"the first code, {speech.start}, and control tokens lie behind the codes: name another token"
            )
    taken: dict[int, str] = {}
    for key in (*audio, *text):
        shared = taken.setdefault(ids[key], key)
        if shared != key and not {shared, key} & {"pad", "chat.user_speech.begin", "chat.user_speech.end"}:
            raise LayoutError(f"{where}: {shared} and {key} are both token {(audio | text)[key]!r}: name two")
