"""How a model lays out a spoken response: which ids are speech, where chunks begin and end, whose turn it is.

A layout is data (``recipes/wavalign_recipes/layout/*.yaml``): tokens by name, a schedule, a codec.
:meth:`Layout.resolve` turns names into the ids of one tokenizer and refuses what does not fit.
Letters in shapes: T text tokens, C codes, N tokens of a response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from wavalign_ext.speech.chat import Chat
from wavalign_ext.speech.heard import EncoderFacts
from wavalign_ext.speech.response import Split, schedule_errors, turn_size, turns_of
from wavalign_ext.speech.streams import Streams
from wavalign_ext.speech.token_names import (
    LayoutError,
    TokenRange,
    check_codes,
    check_overlap,
    check_size,
    id_of,
    is_count,
    resolve_ranges,
)

TEXT, SPEECH, BOUNDARY = 0, 1, 2
PARALLEL = "parallel"
SUPPORTED_TYPES = ("interleaved", PARALLEL)
UNSUPPORTED_TYPES = ("multi_codebook", "separate")
CONTINUOUS = "continuous"


@dataclass(frozen=True)
class Layout:
    """A layout as its YAML file says it; see :func:`load_layout`.

    ``schedule``: (text tokens, audio tokens) pairs; each is used once, the last repeats; one is a fixed
    ratio. With ``counts_boundaries`` audio counts include the two boundaries, as VITA-Audio's do. ``user_speech``:
    range of the user's speech, ``speech`` when null, or ``continuous``: heard through ``encoder``. ``speech``
    is null for answers in text alone. ``streams``: of a parallel layout, which has no schedule. ``extra``: facts for
    types to come.
    """

    name: str
    speech: TokenRange | None = None
    schedule: tuple[tuple[int, int], ...] = ()
    eos: tuple[str, ...] = ()
    pad: str | None = None
    type: str = "interleaved"
    user_speech: TokenRange | str | None = None
    encoder: EncoderFacts | None = None
    begin: str | None = None
    end: str | None = None
    counts_boundaries: bool = True
    codec: Mapping[str, Any] = field(default_factory=dict)
    chat: Chat = field(default_factory=Chat)
    streams: Streams | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None

    @classmethod
    def from_mapping(cls, node: Mapping[str, Any]) -> Layout:
        """Build from a YAML node. Raises :class:`LayoutError`: unknown key, no name, malformed value."""
        node, allowed = dict(node), [item.name for item in fields(cls)]
        where = f"layout {node.get('name', '?')!r}"
        unknown = [key for key in node if key not in allowed]
        if unknown or not node.get("name"):
            what = f"key {unknown[0]!r} is not known" if unknown else "name is missing"
            if "heard" in unknown:
                raise LayoutError(f"{where}: key 'heard' is called user_speech now")
            raise LayoutError(f"{where}: {what}: its keys are {', '.join(allowed)}")
        for key in ("speech", "user_speech"):
            value = node.get(key)
            if isinstance(value, Mapping) and value.keys() <= {"pattern", "count", "first_id"}:
                node[key] = TokenRange(**value)
            elif value is not None and (key, value) != ("user_speech", CONTINUOUS):
                what = "pattern and count, or first_id and count" + ", or continuous" * (key == "user_speech")
                raise LayoutError(f"{where}: {key}={value!r} is malformed: give {what}")
        if node.get("streams") is not None:
            node["streams"] = Streams.from_mapping(node["streams"], where)
        if node.get("encoder") is not None:
            node["encoder"] = EncoderFacts.from_mapping(node["encoder"], where)
        stands = node.get("encoder") is not None and node["encoder"].placeholder is not None
        if stands != (node.get("user_speech") == CONTINUOUS):
            raise LayoutError(
                f"{where}: user_speech: continuous and encoder belong together, with its placeholder: give both"
            )
        if node.get("encoder") is not None and not stands and node.get("type") != PARALLEL:
            raise LayoutError(f"{where}: encoder has no placeholder: vectors are added to codes on two streams alone")
        node["schedule"] = _pairs(node.get("schedule") or (), where)
        eos = node.get("eos") or ()
        node["eos"] = (eos,) if isinstance(eos, str) else tuple(eos)
        node["chat"] = Chat.from_mapping(node.get("chat") or {}, where)
        return cls(**node)

    def resolve(self, tokenizer: Any, vocab_size: int | None = None) -> ResolvedLayout:
        """Names to ids for one tokenizer.

        Args:
            tokenizer: of transformers; ``get_vocab`` tells a missing token from the unknown one.
            vocab_size: rows of the model's embedding, to refuse ids beyond it.

        Raises:
            LayoutError: unsupported type, missing token, overlap, id beyond the model, bad schedule.
        """
        where = f"layout {self.name!r}"
        self._check_type(where)
        if self.type == PARALLEL:
            from wavalign_ext.speech.parallel import resolve

            return resolve(self, tokenizer, vocab_size)
        self._check_turns(where)
        vocabulary = tokenizer.get_vocab()
        heard = self.user_speech if isinstance(self.user_speech, TokenRange) else None
        speech = user_speech = range(0)  # of answers in text alone
        if self.speech is not None:
            speech, user_speech = resolve_ranges(self.speech, heard, vocabulary, where)
        if self.encoder is not None and self.encoder.placeholder is not None:
            placeholder = id_of(self.encoder.placeholder, vocabulary, f"{where}, encoder")
            user_speech = range(placeholder, placeholder + 1)
        around = self.chat.user_speech
        names = [*self.eos, self.begin, self.end, self.pad, *((around.begin, around.end) if around else ())]
        named = {name: id_of(name, vocabulary, where) for name in names if name is not None}
        check_overlap(where, speech, user_speech, named)
        check_size(where, max(*speech[-1:], *user_speech[-1:], *named.values()), vocab_size)
        self.chat.check_template(tokenizer, where)
        return ResolvedLayout(
            layout=self,
            speech_start=speech.start,
            speech_end=speech.stop,
            user_speech_start=user_speech.start,
            user_speech_end=user_speech.stop,
            begin_id=None if self.begin is None else named[self.begin],
            end_id=None if self.end is None else named[self.end],
            eos_ids=tuple(named[name] for name in self.eos),
            pad_id=None if self.pad is None else named[self.pad],
            schedule=tuple((text, audio - self.boundary_tokens) for text, audio in self.schedule),
            around_user=None if around is None else (named[around.begin], named[around.end]),
        )

    @property
    def heard(self) -> TokenRange | None:
        """The user's speech in a prompt, by name: of features there is one code, the placeholder."""
        if self.encoder is not None and self.encoder.placeholder is not None:
            return TokenRange(self.encoder.placeholder, 1)
        return self.user_speech if isinstance(self.user_speech, TokenRange) else self.speech

    @property
    def boundary_tokens(self) -> int:
        """How many boundary tokens a schedule's audio count includes: 2 or 0."""
        return 2 if self.counts_boundaries and self.begin is not None else 0

    def _check_type(self, where: str) -> None:
        if self.type not in SUPPORTED_TYPES:
            problem = "not supported yet" if self.type in UNSUPPORTED_TYPES else "not known"
            raise LayoutError(f"{where}: type {self.type!r} is {problem}: use {', '.join(SUPPORTED_TYPES)}")

    def _check_turns(self, where: str) -> None:
        pair = {self.begin, self.end}
        if not self.eos:
            raise LayoutError(f"{where}: eos is empty: name the token that ends a response")
        if (self.begin is None) != (self.end is None):
            raise LayoutError(f"{where}: begin={self.begin!r}, end={self.end!r}: name both or neither")
        if self.speech is None:
            if self.encoder is None:
                raise LayoutError(f"{where}: speech is missing: give pattern and count of the speech tokens")
            if self.schedule or self.begin is not None:
                raise LayoutError(f"{where}: without speech there are no turns: take out schedule, begin and end")
            return
        if self.begin is not None and (len(pair) == 1 or pair & {*self.eos, self.pad}):
            raise LayoutError(f"{where}: begin={self.begin!r}, end={self.end!r}: name two, not eos or pad")
        if not self.schedule:
            raise LayoutError(f"{where}: schedule is empty: give at least one [text, audio] pair")
        for text, audio in self.schedule:
            if text < 1 or audio <= self.boundary_tokens:
                need = f"at least 1 text token and more than {self.boundary_tokens} audio tokens"
                raise LayoutError(f"{where}: schedule pair ({text}, {audio}) is not allowed: {need}")


@dataclass(frozen=True)
class ResolvedLayout:
    """A layout in the ids of one tokenizer; ``*_end`` ids are exclusive.

    ``schedule`` is (text tokens, codes) per turn, *without* boundaries; ``layout.schedule`` is as declared.
    ``around_user``: ids of the tokens that enclose the user's speech. Where that is features, ``user_speech_start`` is
    their placeholder, and the range has this one id.
    """

    layout: Layout
    speech_start: int
    speech_end: int
    user_speech_start: int
    user_speech_end: int
    begin_id: int | None
    end_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    schedule: tuple[tuple[int, int], ...]
    around_user: tuple[int, int] | None = None

    def modality(self, ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """TEXT, SPEECH or BOUNDARY per id: int8, same shape. Heard speech is speech, an eos is text."""
        ids = torch.as_tensor(ids)
        speech = (ids >= self.speech_start) & (ids < self.speech_end)
        if self.user_speech_start != self.speech_start:
            speech |= (ids >= self.user_speech_start) & (ids < self.user_speech_end)
        result = torch.full_like(ids, TEXT, dtype=torch.int8).masked_fill_(speech, SPEECH)
        for boundary in (self.begin_id, self.end_id):
            if boundary is not None:
                result.masked_fill_(ids == boundary, BOUNDARY)
        return result

    @property
    def speaks(self) -> bool:
        """Whether answers have speech; otherwise they are text alone."""
        return self.speech_end > self.speech_start

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """A prompt as the chat template writes it, as the rows hold it; on one stream they are the same."""
        return list(ids)

    def drawn(self, ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Which ids of a response (N,) the model draws, and which are forced: bool (N,)."""
        return torch.ones(len(ids), dtype=torch.bool)

    @property
    def padding(self) -> list[int]:
        """The shortest row, for prompt and response."""
        return [self.eos_ids[0]]

    def check_codes(self, codes: Sequence[int]) -> None:
        """Raises :class:`LayoutError`: a code that the layout has no token for."""
        check_codes(f"layout {self.layout.name!r}", codes, self.speech_end - self.speech_start)

    def interleave(self, text_ids: Sequence[int], codes: Sequence[int]) -> list[int]:
        """A response (N,) without its eos: ``text_ids`` (T,) and ``codes`` (C,) in the schedule's turns.

        The chunk that uses up either stream is the last and takes what is left of the other: all remaining
        speech when the text runs out; all remaining text, *before* the chunk's speech, when the speech runs
        out. So every chunk has both. Source: VITA-Audio's ``text_audio_interval``.

        Raises:
            LayoutError: empty text or codes, a code out of range, or a text id that is no text.
        """
        where = f"layout {self.layout.name!r}"
        text, speech = [int(i) for i in text_ids], [int(code) for code in codes]
        if not text or bool(speech) != self.speaks:
            found = f"{len(text)} text tokens and {len(speech)} codes"
            needs = "text and speech" if self.speaks else "text alone"
            raise LayoutError(f"{where}: a response needs {needs}, not {found}: fix or drop the row")
        self.check_codes(speech)
        kinds = self.modality(text).tolist()
        wrong = [i for i, kind in zip(text, kinds, strict=True) if kind != TEXT or i in self.eos_ids]
        if wrong:  # an eos would cut the response short
            raise LayoutError(f"{where}: text id {wrong[0]} is an audio, boundary or eos token: take it out")
        if not self.speaks:
            return text
        begin, end = [[] if i is None else [i] for i in (self.begin_id, self.end_id)]
        out, turn = [], 0
        while text:
            words, sounds = turn_size(self.schedule, turn)
            if len(text) <= words or len(speech) <= sounds:  # the last chunk takes what is left of both
                words, sounds = len(text), len(speech)
            out += [*text[:words], *begin, *(self.speech_start + code for code in speech[:sounds]), *end]
            text, speech = text[words:], speech[sounds:]
            turn += 1
        return out

    def target(self, text_ids: Sequence[int], codes: Sequence[int]) -> list[int]:
        """A supervised target (N + 1,): :meth:`interleave`, whose errors it raises, and the first eos."""
        return [*self.interleave(text_ids, codes), self.eos_ids[0]]

    def split(self, ids: torch.Tensor | Sequence[int]) -> Split:
        """The inverse of :meth:`interleave`, for anything that a model may say (N,); never raises.

        The first eos ends the response; padding may follow. Text inside a chunk is kept as text, speech
        outside one as speech, the user's speech is dropped, and ``errors`` names each. The schedule is judged
        when nothing else is wrong; a response without eos may stop anywhere in it.
        """
        tokens = [int(i) for i in (ids.tolist() if isinstance(ids, torch.Tensor) else ids)]
        stop = next((n for n, i in enumerate(tokens) if i in self.eos_ids), len(tokens))
        chunks, found = turns_of(tokens[:stop], self)
        if after := [n for n in range(stop + 1, len(tokens)) if tokens[n] != self.pad_id]:
            found["tokens after the end"] = after
        errors = [f"{name}: {len(at)}, first at position {at[0]}" for name, at in found.items()]
        ended = stop < len(tokens)
        text, codes = ([i for chunk in chunks for i in chunk[stream]] for stream in (0, 1))
        return Split(text, codes, errors or schedule_errors(chunks, self.schedule, ended), ended, chunks)

    def user_speech_prompt(self, codes: Sequence[int], text: str = "", role: str = "user") -> str:
        """The user's speech (C,) in a chat message: its tokens by name, and what ``chat.user_speech`` puts around them.

        ``text`` is what the message says before the speech, and ``role`` whose message it is. Where the user is heard
        through an encoder, ``codes`` are as many zeros as there are feature vectors.

        Raises:
            LayoutError: no codes, a code out of range, or speech tokens that have no names.
        """
        where = f"layout {self.layout.name!r}"
        user_speech = self.layout.heard
        if user_speech is None or user_speech.pattern is None:
            raise LayoutError(f"{where}: its speech tokens have no names to write: build the prompt from ids")
        if not len(codes):
            raise LayoutError(f"{where}: the user's speech is empty: give at least one code, or drop the row")
        check_codes(f"{where}, user_speech", codes, self.user_speech_end - self.user_speech_start)
        names = "".join(user_speech.pattern.format(int(code)) for code in codes)
        return self.layout.chat.around(names, text, role)

    def check_prompt(self, messages: Sequence[Mapping[str, Any]], tokenizer: Any, where: str) -> None:
        """Refuse a dialogue in which the user's speech is not between the tokens of ``chat.user_speech``.

        The model has never seen such a prompt. ``where`` names the row.

        Raises:
            LayoutError: a run of the user's speech without the token before or behind it.
        """
        around = self.layout.chat.user_speech
        if around is None or self.around_user is None:
            return
        (begin, end), spoken = self.around_user, range(self.user_speech_start, self.user_speech_end)
        for message in messages:
            if message["role"] == "assistant":  # its earlier answers have the layout's own boundaries
                continue
            ids = [None, *tokenizer.encode(message["content"], add_special_tokens=False), None]
            for before, here, after in zip(ids, ids[1:], ids[2:], strict=False):
                starts, stops = here in spoken and before not in spoken, here in spoken and after not in spoken
                if (starts and before != begin) or (stops and after != end):
                    raise LayoutError(
                        f"{where}: the user's speech is not between {around.begin} and {around.end}, as layout "
                        f"{self.layout.name!r} writes it: run wavalign prepare again on the recordings"
                    )


def load_layout(source: str | Path | Mapping[str, Any]) -> Layout:
    """A layout from its name in ``wavalign_recipes/layout``, from the path of a YAML file, or from a mapping.

    Raises:
        LayoutError: no such name or file (the message lists the known names), or a malformed layout.
    """
    if isinstance(source, Mapping):
        plain: Any = OmegaConf.to_container(source, resolve=True) if OmegaConf.is_config(source) else source
        return Layout.from_mapping(plain)
    path: Any = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = resources.files("wavalign_recipes") / "layout" / f"{source}.yaml"
    if not path.is_file():
        known = ", ".join(known_layouts())
        raise LayoutError(f"no layout {str(source)!r}: give a YAML file, or one of {known}")
    try:
        node: Any = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")), resolve=True)
    except yaml.YAMLError as error:
        raise LayoutError(f"layout {str(source)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, dict):
        raise LayoutError(f"layout {str(source)!r} is a list: give a mapping, as pocket.yaml does")
    return Layout.from_mapping(node)


def known_layouts() -> list[str]:
    """Names of the layouts that come with WavAlign."""
    folder = resources.files("wavalign_recipes") / "layout"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _pairs(schedule: Any, where: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = tuple((text, audio) for text, audio in schedule)
    except (TypeError, ValueError):
        pairs = ((None, None),)
    if not all(is_count(count, 0) for pair in pairs for count in pair):
        raise LayoutError(f"{where}: schedule={schedule!r}: give pairs of whole numbers: [[1, 10], [4, 10]]")
    return pairs
