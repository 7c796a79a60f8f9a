"""One line of JSONL as a dialogue: turns of text and clips, and the target. No audio is read here.

The field names of the public WavAlign release are accepted beside ours (``ALIASES``).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")
HEARD, SPOKEN = "heard", "spoken"  # who a clip is for: the user's is heard by the model, the assistant's is spoken
PLACEHOLDER = re.compile(r"<\|audio\|>|<audio>")

ALIASES = {
    "messages": ("messages",),
    "audios": ("audios",),
    "target_text": ("target_text", "sft_target_text", "answer_text"),
    "target_audio": ("target_audio", "sft_target_audio", "answer_audio", "answer_audio_path"),
    "question_text": ("question_text",),
    "question_audio": ("question_audio",),
    "history_text": ("history_text", "history"),
    "task_type": ("task_type",),
    "keywords": ("keywords",),
    "data_source": ("data_source", "source_dataset"),
    "id": ("id",),
}
KNOWN = {name for names in ALIASES.values() for name in names}


class SampleError(ValueError):
    """What is wrong with one field of a line; ``reason`` ends with the remedy."""

    def __init__(self, field: str, value: Any, reason: str) -> None:
        shown = value if isinstance(value, str) else repr(value)
        super().__init__(f"{field}={shown[:120]!r}: {reason}")
        self.field, self.value, self.reason = field, shown[:400], reason


@dataclass(frozen=True)
class Clip:
    """A piece of audio: the field that names it, its ``source`` as the line gives it, ``role`` HEARD or SPOKEN.

    ``source`` is a path, a file's bytes, or a mapping of datasets' Audio: ``bytes``, ``path``, ``array`` with
    ``sampling_rate``.
    """

    name: str
    source: Any
    role: str


@dataclass(frozen=True)
class Turn:
    """A message: text (str) and clips in order."""

    role: str
    parts: tuple[str | Clip, ...]

    @property
    def text(self) -> str:
        """The words of the turn without its clips."""
        return "".join(part for part in self.parts if isinstance(part, str)).strip()

    @property
    def clips(self) -> list[Clip]:
        """Its clips, in order."""
        return [part for part in self.parts if isinstance(part, Clip)]


@dataclass(frozen=True)
class Sample:
    """A dialogue up to the answer, and the answer: the target."""

    turns: tuple[Turn, ...]
    target_text: str
    target: Clip
    question: str | None
    task: str
    data_source: str | None = None
    id: str | None = None
    keywords: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def clips(self) -> list[Clip]:
        """Every clip that has to be encoded, the target last."""
        return [*(clip for turn in self.turns for clip in turn.clips), self.target]


def parse(record: Any) -> Sample:
    """A line's object as a sample. Raises :class:`SampleError`, naming the first field that is wrong.

    Turns of the assistant after the last one of the user are the target where no field gives one; else they are
    dropped, as the public release drops them.
    """
    if not isinstance(record, Mapping):
        raise SampleError("line", record, "is not a JSON object: write one object per line")
    values = {name: _one(record, names) for name, names in ALIASES.items()}
    turns = _turns(values)
    text, source, target = _text(values, "target_text"), values["target_audio"], None
    if source is not None:
        target = Clip("target_audio", _source(source, "target_audio"), SPOKEN)
    elif turns[-1].role == "assistant" and text is None and turns[-1].clips:
        text, target = turns[-1].text or None, turns[-1].clips[0]
    while turns and turns[-1].role == "assistant":
        turns.pop()
    if not any(turn.role == "user" and turn.clips for turn in turns):
        raise SampleError("messages", values["messages"], "the user says nothing: put <|audio|> and a file in audios")
    if text is None:
        raise SampleError("target_text", text, "no target: give the answer in words (target_text)")
    if target is None:
        raise SampleError("target_audio", source, "no target: give a recording of the answer (target_audio)")
    words = " ".join(turn.text for turn in turns if turn.role == "user").strip()
    return Sample(
        turns=tuple(turns),
        target_text=text,
        target=target,
        question=_text(values, "question_text") or words or None,
        task=_text(values, "task_type") or "s2s",
        data_source=_text(values, "data_source"),
        id=None if values["id"] is None else str(values["id"]),
        keywords=_keywords(values["keywords"]),
        ignored=tuple(name for name in record if name not in KNOWN),
    )


def _one(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value under whichever of ``names`` the line uses."""
    given = {name: record[name] for name in names if record.get(name) is not None and record.get(name) != ""}
    values = list(given.values())
    if any(value != values[0] for value in values[1:]):
        raise SampleError(" and ".join(given), values, "mean the same field and differ: keep one")
    return values[0] if values else None


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values[name]
    if value is not None and not isinstance(value, str):
        raise SampleError(name, value, "is no text: write a string")
    return (value or "").strip() or None


def _keywords(value: Any) -> tuple[str, ...]:
    words = [] if value is None else value
    if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
        raise SampleError("keywords", value, "is no list of words: give those that a right answer has, as [seven]")
    return tuple(word.strip() for word in words)


def _source(value: Any, name: str) -> Any:
    """What a clip comes from, see :class:`Clip`; a mapping with nothing but a path is that path."""
    if isinstance(value, Mapping) and any(value.get(key) is not None for key in ("bytes", "array")):
        return value
    path = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(path, str) and path.strip():
        return path.strip()
    if isinstance(path, bytes):
        return path
    raise SampleError(name, value, "is no file name: give a path, relative to the JSONL file or to --audio-root")


def _turns(values: Mapping[str, Any]) -> list[Turn]:
    messages, audios = values["messages"], values["audios"]
    if messages is None and values["question_audio"] is not None:  # the release's older rows: one question, no messages
        history = _text(values, "history_text")
        messages = [{"role": "user", "content": f"{history}\n\n<|audio|>" if history else "<|audio|>"}]
        audios = [values["question_audio"]]
    if not isinstance(messages, list) or not messages:
        raise SampleError("messages", messages, "is no list of messages: [{role: user, content: '<|audio|>'}]")
    audios = [] if audios is None else audios if isinstance(audios, list) else [audios]
    split = [_parts(message, f"messages[{number}]") for number, message in enumerate(messages)]
    held = sum(part is None for _, parts in split for part in parts)
    if not held and audios:
        split = _at_the_end(split, len(audios), audios)
    elif held != len(audios):
        raise SampleError("audios", audios, f"{len(audios)} files for {held} <|audio|> in messages: make them equal")
    queue = ((f"audios[{number}]", source) for number, source in enumerate(audios))
    return [_turn(role, parts, queue) for role, parts in split]


def _parts(message: Any, where: str) -> tuple[str, list[Any]]:
    """(role, parts): text as str, a placeholder as None, a clip given in place as (name, source)."""
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise SampleError(where, message, f"needs a role: one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, str):
        texts = PLACEHOLDER.split(content)
        parts: list[Any] = [texts[0]]
        for text in texts[1:]:
            parts += [None, text]
        return message["role"], [part for part in parts if part != ""]
    if not isinstance(content, list):
        raise SampleError(f"{where}.content", content, "is no text: write a string with <|audio|> for each clip")
    parts = []
    for number, part in enumerate(content):
        name = f"{where}.content[{number}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind == "audio":
            parts.append((name, part.get("audio") or part.get("path")))
        else:
            raise SampleError(name, part, "is no part: {type: text, text: …} or {type: audio, audio: FILE}")
    return message["role"], parts


def _at_the_end(split: list[tuple[str, list[Any]]], count: int, audios: Any) -> list[tuple[str, list[Any]]]:
    """Messages without placeholders: one clip ends the last user message; as many as user messages end one each."""
    users = [number for number, (role, _) in enumerate(split) if role == "user"]
    chosen = users if count == len(users) else users[-1:] if count == 1 else []
    if not chosen:
        raise SampleError("audios", audios, f"{count} files and no <|audio|> in messages: say where each belongs")
    return [(role, [*parts, None] if number in chosen else parts) for number, (role, parts) in enumerate(split)]


def _turn(role: str, parts: list[Any], queue: Iterator[tuple[str, Any]]) -> Turn:
    whose = SPOKEN if role == "assistant" else HEARD
    made: list[str | Clip] = []
    for part in parts:
        name, source = next(queue) if part is None else ("", part) if isinstance(part, str) else part
        made.append(source if isinstance(part, str) else Clip(name, _source(source, name), whose))
    return Turn(role, tuple(made))
