"""Chat messages as turns of text and clips: placeholders, parts, files in order."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")
HEARD, SPOKEN = "heard", "spoken"  # who a clip is for: the user's is heard by the model, the assistant's is spoken
PLACEHOLDER = re.compile(r"<\|audio\|>|<audio>")
_MEDIA = "(?:audio|speech|sound|voice|wav|image|img|video|media)"
FOREIGN = re.compile(
    rf"<[/|]?[\w.:-]*{_MEDIA}[\w.:-]*\s*[/|]?>|<{_MEDIA}\s[^<>]*>"  # <|AUDIO|>, <speech>, </audio>, <audio src="…">
    r"|\[/?(?:begin_|end_)?(?:audio|speech|sound)(?:[ _]?\d+)?\]|\{+(?:audio|speech|sound)\w*\}+",  # [AUDIO], {audio}
    re.IGNORECASE,
)


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


def check_strings(value: Any, where: str = "") -> None:
    """Raises :class:`SampleError`: a text below ``value`` that no file can hold, as half a surrogate pair."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            why = f"has half a character (a lone surrogate) at {error.start}: take it out"
            raise SampleError(where or "line", value, why) from error
    elif isinstance(value, Mapping):
        for key, one in value.items():
            check_strings(str(key), "line")
            check_strings(one, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            check_strings(one, f"{where}[{number}]")


def check_placeholders(text: str, where: str, remedy: str = "write <|audio|> where a recording belongs") -> None:
    """Raises :class:`SampleError`: a placeholder of another project, or one where none belongs."""
    found = FOREIGN.search(text) or PLACEHOLDER.search(text)
    if found:
        raise SampleError(where, text, f"has the placeholder {found[0]!r:.60}, which nothing here reads: {remedy}")


def check_source(value: Any, name: str) -> Any:
    """What a clip comes from, see :class:`Clip`; a mapping with nothing but a path is that path."""
    if isinstance(value, Mapping) and any(value.get(key) is not None for key in ("bytes", "array")):
        return value
    path = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(path, str) and path.strip():
        return path.strip()
    if isinstance(path, bytes):
        return path
    raise SampleError(name, value, "is no file name: give a path, relative to the JSONL file or to --audio-root")


def make_turns(values: Mapping[str, Any]) -> list[Turn]:
    """The turns of ``messages``, with the clips of ``audios`` in their places. Raises :class:`SampleError`."""
    messages, audios = values["messages"], values["audios"]
    if messages is None and values["question_audio"] is not None:  # the release's older rows: one question, no messages
        history = values["history_text"]
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
    role, content, audio = message["role"], message.get("content"), message.get("audio")
    if isinstance(audio, Mapping) and not content:  # an answer of OpenAI's API
        content = [{"type": "text", "text": str(audio.get("transcript") or "")}, {"type": "audio", "audio": audio}]
    if not isinstance(content, str | list):
        raise SampleError(f"{where}.content", content, "is no text: write a string with <|audio|> for each clip")
    given = (
        [content] if isinstance(content, str) else [_part(p, f"{where}.content[{n}]") for n, p in enumerate(content)]
    )
    parts: list[Any] = []
    for part in given:
        if not isinstance(part, str):
            parts.append(part)
            continue
        for number, text in enumerate(PLACEHOLDER.split(part)):
            check_placeholders(text, f"{where}.content")
            parts += [None, text] if number else [text]
    return role, [part for part in parts if part != ""]


def _part(part: Any, name: str) -> Any:
    """A part of a message, in the words of transformers, OpenAI or vLLM."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return part["text"]
    if kind not in ("audio", "input_audio", "audio_url"):
        raise SampleError(name, part, "is no part: {type: text, text: …} or {type: audio, audio: FILE}")
    keys = ("audio", "input_audio", "audio_url", "path", "url", "base64", "data", "array", "bytes")
    key = next((key for key in keys if part.get(key) is not None), None)
    if key is None:
        return None  # its file is the next one of audios
    value = part if key in ("base64", "data", "array", "bytes") else part[key]
    if isinstance(value, Mapping):
        text = next((value[key] for key in ("data", "base64") if value.get(key) is not None), None)
        value = value.get("url") or (value if text is None else {"bytes": text})
    return name, value


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
        made.append(source if isinstance(part, str) else Clip(name, check_source(source, name), whose))
    return Turn(role, tuple(made))
