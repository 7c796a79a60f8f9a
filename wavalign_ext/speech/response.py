"""A response taken apart: the turns that a model has said, and what breaks its layout.

Letters in shapes: T text tokens, C codes, N tokens of a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wavalign_ext.speech.layout import ResolvedLayout

Chunk = tuple[list[int], list[int]]  # (text ids, codes) of one turn
Schedule = tuple[tuple[int, int], ...]  # (text tokens, codes) of each turn


@dataclass(frozen=True)
class Split:
    """A response taken apart: T ``text_ids``, C ``codes``, and the same per turn in ``chunks``.

    ``errors`` names what broke the layout, as ``"NAME: details"``; ``ended`` is whether an eos was seen.
    """

    text_ids: list[int]
    codes: list[int]
    errors: list[str]
    ended: bool
    chunks: list[Chunk] = field(default_factory=list)


def turn_size(schedule: Schedule, turn: int) -> tuple[int, int]:
    """Text tokens and codes of a turn, counted from 0: the last pair of the schedule repeats."""
    return schedule[min(turn, len(schedule) - 1)]


def turns_of(tokens: Sequence[int], layout: ResolvedLayout) -> tuple[list[Chunk], dict[str, list[int]]]:
    """Turns of a response (N,) without its eos, and the positions of each kind of error in it."""
    chunks: list[Chunk] = [([], [])]
    found: dict[str, list[int]] = {}
    bounded, opened = layout.begin_id is not None, None
    for n, i in enumerate(tokens):
        error = None
        if bounded and i == layout.begin_id:
            error = None if opened is None else "a chunk begins inside a chunk"
            opened = n
        elif bounded and i == layout.end_id:
            if opened is None:
                error = "a chunk ends that did not begin"
            elif opened == n - 1:
                error = "a chunk without speech"
            opened = None
            chunks.append(([], []))
        elif layout.speech_start <= i < layout.speech_end:
            error = "speech outside a chunk" if bounded and opened is None else None
            chunks[-1][1].append(i - layout.speech_start)
        elif layout.user_speech_start <= i < layout.user_speech_end:
            error = "the user's speech in a response"
        else:
            error = None if opened is None else "text inside a speech chunk"
            if opened is None and chunks[-1][1]:
                chunks.append(([], []))
            chunks[-1][0].append(i)
        if error:
            found.setdefault(error, []).append(n)
    if opened is not None:
        found["the last chunk does not end"] = [opened]
    return [chunk for chunk in chunks if chunk != ([], [])], found


def schedule_errors(chunks: list[Chunk], schedule: Schedule, ended: bool) -> list[str]:
    """Whether the turns are those of ``ResolvedLayout.interleave``, or without eos a beginning of them."""
    if ended and not chunks:
        return ["schedule violated: the response is empty"]
    if not schedule:  # of answers in text alone
        return []
    for turn, (text, codes) in enumerate(chunks):
        want_text, want_codes = turn_size(schedule, turn)
        if turn < len(chunks) - 1:
            fits = (len(text), len(codes)) == (want_text, want_codes)
        else:  # what is left of one stream, never of both
            fits = text and (codes or not ended) and (len(text) <= want_text or len(codes) <= want_codes)
        if not fits:
            got = f"{len(text)} text tokens, {len(codes)} codes"
            return [f"schedule violated: turn {turn + 1} has {got}, not {want_text} and {want_codes}"]
    return []
