"""How a model lays out a spoken response: which ids are speech, where chunks begin, how text and speech take turns.

A layout is data (``recipes/wavalign_recipes/layout/*.yaml``): tokens by name, a schedule, a codec.
:meth:`Layout.resolve` turns names into the ids of one tokenizer and refuses what does not fit. The schedules and token
names are facts of the models' public code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

TEXT, SPEECH, BOUNDARY = 0, 1, 2
SUPPORTED_TYPES = ("interleaved",)
CONTINUOUS = "continuous"


class LayoutError(ValueError):
    """A layout that is inconsistent, or does not fit a tokenizer or a response."""


@dataclass(frozen=True)
class TokenRange:
    """``count`` consecutive tokens ``pattern.format(0)``, …; ``first_id`` where a tokenizer has no names for them."""

    pattern: str | None
    count: int
    first_id: int | None = None

    def resolve(self, vocabulary: Mapping[str, int], what: str) -> range:
        """The ids of the range. Raises :class:`LayoutError` when a name is missing or the ids are not consecutive."""
        if self.count < 1:
            raise LayoutError(f"{what}: count={self.count} is not allowed: give the number of codes, at least 1")
        if self.first_id is not None:
            return range(self.first_id, self.first_id + self.count)
        if self.pattern is None or "{}" not in self.pattern:
            raise LayoutError(f"{what}: pattern={self.pattern!r} is not allowed: a token name with {{}} for the code")
        first, last = self.pattern.format(0), self.pattern.format(self.count - 1)
        for name in (first, last):
            _need(name, vocabulary, what)
        ids = range(vocabulary[first], vocabulary[first] + self.count)
        for code in range(self.count):
            name = self.pattern.format(code)
            if vocabulary.get(name) != ids[code]:
                found = vocabulary.get(name)
                raise LayoutError(
                    f"{what}: token {name!r} has id {found}, not {ids[code]}: the range must be consecutive"
                )
        return ids


@dataclass(frozen=True)
class Layout:
    """A layout as its YAML file says it; see :func:`load_layout`.

    ``schedule`` is a list of (text tokens, audio tokens) pairs: each is used once, the last one repeats. With
    ``counts_boundaries`` an audio count includes the two boundary tokens, as VITA-Audio counts. ``heard`` is the range
    that carries the user's speech, the same as ``speech`` when null.
    """

    name: str
    speech: TokenRange
    schedule: tuple[tuple[int, int], ...]
    eos: tuple[str, ...]
    pad: str | None = None
    type: str = "interleaved"
    heard: TokenRange | str | None = None
    begin: str | None = None
    end: str | None = None
    counts_boundaries: bool = True
    codec: Mapping[str, Any] = field(default_factory=dict)
    chat: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, node: Mapping[str, Any]) -> Layout:
        """Build from a YAML node. Raises :class:`LayoutError` on an unknown key or a missing one."""
        node = dict(node)
        try:
            node["speech"] = TokenRange(**node["speech"])
            if isinstance(node.get("heard"), Mapping):
                node["heard"] = TokenRange(**node["heard"])
            node["schedule"] = tuple((int(text), int(audio)) for text, audio in node["schedule"])
            node["eos"] = tuple(node["eos"])
            return cls(**node)
        except (KeyError, TypeError, ValueError) as error:
            raise LayoutError(f"layout {node.get('name', '?')!r} is malformed: {error}") from error

    def resolve(self, tokenizer: Any, vocab_size: int | None = None) -> ResolvedLayout:
        """Names to ids for one tokenizer.

        Args:
            tokenizer: any transformers tokenizer (``get_vocab`` is used).
            vocab_size: rows of the model's embedding, to refuse ids beyond it.

        Raises:
            LayoutError: unsupported type, missing token, overlapping ranges, ids beyond the model, unusable schedule.
        """
        if self.type not in SUPPORTED_TYPES:
            raise LayoutError(
                f"layout {self.name!r}: type {self.type!r} is not supported yet: only {SUPPORTED_TYPES[0]}"
            )
        if self.heard == CONTINUOUS:
            raise LayoutError(
                f"layout {self.name!r}: the user's speech is continuous, which is not supported yet: rollouts need "
                "prompts of discrete tokens; use a model whose input speech is tokenised (vita_audio_balance)"
            )
        self._check_schedule()
        vocabulary = tokenizer.get_vocab()
        speech = self.speech.resolve(vocabulary, f"layout {self.name!r}, speech")
        heard = speech
        if isinstance(self.heard, TokenRange):
            heard = self.heard.resolve(vocabulary, f"layout {self.name!r}, heard")
        named = {name: _need(name, vocabulary, f"layout {self.name!r}") for name in self._single_tokens()}
        _check_overlap(self.name, {"speech": speech, "heard": heard}, named)
        if vocab_size is not None:
            top = max(speech[-1], heard[-1], *named.values())
            if top >= vocab_size:
                raise LayoutError(
                    f"layout {self.name!r}: token id {top} is beyond the model's vocabulary of {vocab_size}"
                )
        return ResolvedLayout(
            layout=self,
            speech_start=speech.start,
            speech_end=speech.stop,
            heard_start=heard.start,
            heard_end=heard.stop,
            begin_id=None if self.begin is None else named[self.begin],
            end_id=None if self.end is None else named[self.end],
            eos_ids=tuple(named[name] for name in self.eos),
            pad_id=None if self.pad is None else named[self.pad],
        )

    @property
    def boundary_tokens(self) -> int:
        """How many boundary tokens a schedule's audio count includes."""
        return ((self.begin is not None) + (self.end is not None)) if self.counts_boundaries else 0

    def _single_tokens(self) -> list[str]:
        names = [*self.eos, self.begin, self.end, self.pad]
        return list(dict.fromkeys(name for name in names if name is not None))

    def _check_schedule(self) -> None:
        if not self.eos:
            raise LayoutError(f"layout {self.name!r}: eos is empty: name the token that ends a response")
        if not self.schedule:
            raise LayoutError(f"layout {self.name!r}: schedule is empty: give at least one (text, audio) pair")
        for text, audio in self.schedule:
            if text < 1 or audio <= self.boundary_tokens:
                raise LayoutError(
                    f"layout {self.name!r}: schedule pair ({text}, {audio}) is not allowed: at least 1 text token and "
                    f"more than {self.boundary_tokens} audio tokens"
                )


@dataclass(frozen=True)
class Split:
    """A response taken apart. ``errors`` names what broke the layout; ``ended`` is whether an eos was seen."""

    text_ids: list[int]
    codes: list[int]
    errors: list[str]
    ended: bool


@dataclass(frozen=True)
class ResolvedLayout:
    """A layout in the ids of one tokenizer; ``*_end`` ids are exclusive."""

    layout: Layout
    speech_start: int
    speech_end: int
    heard_start: int
    heard_end: int
    begin_id: int | None
    end_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None

    def modality(self, ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """TEXT, SPEECH or BOUNDARY per id: int8, same shape. The user's speech counts as speech, an eos as text."""
        ids = torch.as_tensor(ids)
        speech = (ids >= self.speech_start) & (ids < self.speech_end)
        speech |= (ids >= self.heard_start) & (ids < self.heard_end)
        result = torch.where(speech, SPEECH, TEXT).to(torch.int8)
        for boundary in (self.begin_id, self.end_id):
            if boundary is not None:
                result[ids == boundary] = BOUNDARY
        return result

    def interleave(self, text_ids: Sequence[int], codes: Sequence[int]) -> list[int]:
        """A response without its eos: text and speech in the turns of the schedule.

        When the text runs out, the remaining speech joins the last chunk; when the speech runs out, the remaining text
        follows it. Raises :class:`LayoutError` on empty text, empty speech or a code out of range.
        """
        if not len(text_ids) or not len(codes):
            raise LayoutError(
                f"layout {self.layout.name!r}: a response needs text and speech, not {len(text_ids)} text tokens "
                f"and {len(codes)} codes"
            )
        count = self.speech_end - self.speech_start
        wrong = next((code for code in codes if not 0 <= code < count), None)
        if wrong is not None:
            raise LayoutError(f"layout {self.layout.name!r}: code {wrong} is out of range: 0 to {count - 1}")
        out: list[int] = []
        for text, speech in self._chunks(list(text_ids), [self.speech_start + code for code in codes]):
            out += text
            if speech:
                out += [i for i in (self.begin_id,) if i is not None]
                out += speech
                out += [i for i in (self.end_id,) if i is not None]
        return out

    def target(self, text_ids: Sequence[int], codes: Sequence[int]) -> list[int]:
        """A supervised target: :meth:`interleave` and the first eos."""
        return [*self.interleave(text_ids, codes), self.eos_ids[0]]

    def split(self, ids: Sequence[int]) -> Split:
        """The inverse of :meth:`interleave`, for anything that a model may say; never raises.

        The first eos ends the response. Text inside a speech chunk is kept as text, speech outside one as speech, and
        both are reported, as are the user's tokens, which a response must not have.
        """
        text, codes, errors, ended, inside = [], [], [], False, False
        chunked = self.begin_id is not None and self.end_id is not None
        for position, i in enumerate(int(i) for i in ids):
            if i in self.eos_ids:
                ended = True
                if position != len(ids) - 1:
                    errors.append(f"{len(ids) - 1 - position} tokens after the end")
                break
            if i in (self.begin_id, self.end_id):
                if chunked and inside != (i == self.end_id):
                    errors.append("a chunk begins inside a chunk" if inside else "a chunk ends that did not begin")
                inside = i == self.begin_id
            elif self.speech_start <= i < self.speech_end:
                codes.append(i - self.speech_start)
                if chunked and not inside:
                    errors.append(f"speech outside a chunk at position {position}")
            elif self.heard_start <= i < self.heard_end:
                errors.append(f"the user's speech in a response at position {position}")
            else:
                text.append(i)
                if inside:
                    errors.append(f"text inside a speech chunk at position {position}")
        if chunked and inside:
            errors.append("the last chunk does not end")
        return Split(text, codes, errors, ended)

    def heard_prompt(self, codes: Sequence[int]) -> str:
        """The user's speech as the content of a chat message: its tokens by name."""
        heard = self.layout.heard if isinstance(self.layout.heard, TokenRange) else self.layout.speech
        if heard.pattern is None:
            raise LayoutError(f"layout {self.layout.name!r}: its speech tokens have no names, so no text can hold them")
        count = self.heard_end - self.heard_start
        wrong = next((code for code in codes if not 0 <= code < count), None)
        if wrong is not None:
            raise LayoutError(f"layout {self.layout.name!r}: heard code {wrong} is out of range: 0 to {count - 1}")
        return "".join(heard.pattern.format(code) for code in codes)

    def _chunks(self, text: list[int], speech: list[int]) -> list[tuple[list[int], list[int]]]:
        chunks: list[tuple[list[int], list[int]]] = []
        turn = 0
        while text:
            text_count, audio_count = self.layout.schedule[min(turn, len(self.layout.schedule) - 1)]
            audio_count -= self.layout.boundary_tokens
            chunks.append((text[:text_count], speech[:audio_count]))
            text, speech = text[text_count:], speech[audio_count:]
            turn += 1
        chunks[-1][1].extend(speech)
        return chunks


def load_layout(source: str | Path | Mapping[str, Any]) -> Layout:
    """A layout from its name in ``wavalign_recipes/layout``, from the path of a YAML file, or from a mapping.

    Raises:
        LayoutError: no such name or file; the message lists the known names.
    """
    if isinstance(source, Mapping):
        return Layout.from_mapping(source)
    if str(source).endswith((".yaml", ".yml")):
        path: Any = Path(source)
    else:
        path = resources.files("wavalign_recipes") / "layout" / f"{source}.yaml"
    if not path.is_file():
        raise LayoutError(f"no layout {str(source)!r}: give a YAML file, or one of {', '.join(known_layouts())}")
    node: Any = OmegaConf.to_container(OmegaConf.create(path.read_text()), resolve=True)
    return Layout.from_mapping(node)


def known_layouts() -> list[str]:
    """Names of the layouts that come with WavAlign."""
    folder = resources.files("wavalign_recipes") / "layout"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _need(name: str, vocabulary: Mapping[str, int], what: str) -> int:
    if name not in vocabulary:
        raise LayoutError(
            f"{what}: the tokenizer has no token {name!r}: use the model's own, or the layout that belongs to it"
        )
    return vocabulary[name]


def _check_overlap(layout: str, ranges: Mapping[str, range], named: Mapping[str, int]) -> None:
    speech, heard = ranges["speech"], ranges["heard"]
    if speech != heard and speech.start < heard.stop and heard.start < speech.stop:
        raise LayoutError(
            f"layout {layout!r}: speech ids {speech} and heard ids {heard} overlap: give each its own range"
        )
    for name, token_id in named.items():
        for what, ids in ranges.items():
            if token_id in ids:
                raise LayoutError(f"layout {layout!r}: token {name!r} (id {token_id}) lies in the {what} range {ids}")
