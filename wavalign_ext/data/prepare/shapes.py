"""Lines in the shapes of other projects, rewritten into ours.

Facts from the projects' own code and pages: LLaMA-Factory ``data/README.md`` and ``data/converter.py`` (sharegpt,
alpaca), ms-swift ``dataset/preprocessor/core.py`` (query and response, pairs, alpaca), VoiceBench ``main.py`` (columns
of its data set), URO-Bench ``inference_for_eval.py`` and ``inference_multi-round.py``, Kimi-Audio
``finetune_codes/README.md`` and ``infer.py``. Parts of messages as OpenAI, transformers and vLLM write them are read in
:mod:`messages`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from wavalign_ext.data.prepare.messages import SampleError

Record = dict[str, Any]

TALKS = ("messages", "conversations", "conversation")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
QUERIES = ("query", "prompt", "question")
RESPONSES = ("response", "output", "answer", "completion", "solution", "target")


def shape_of(record: Mapping[str, Any]) -> str:
    """Which of :data:`SHAPES` a line has, by its keys; ours where none is recognised."""
    talk = next((record[name] for name in TALKS if isinstance(record.get(name), list) and record[name]), None)
    if talk is not None:
        first = talk[0] if isinstance(talk[0], Mapping) else {}
        if "message_type" in first:
            return "kimi"
        if "human" in first:
            return "swift"
        return "sharegpt" if "from" in first or "messages" not in record else "wavalign"
    if "source_wav" in record or isinstance(record.get("dialogue"), list):
        return "uro-bench"
    if "audio" in record and "prompt" in record:
        return "voicebench"
    return "swift" if "query" in record or "instruction" in record else "wavalign"


def as_ours(record: Mapping[str, Any], shape: str) -> Record:
    """A line in our field names. Raises :class:`SampleError`: it does not have the shape that was asked for."""
    reader = SHAPES[shape_of(record) if shape == "auto" else shape]
    try:
        return reader(dict(record))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SampleError):
            raise
        why = f"is not as --format {shape} has it ({type(error).__name__}: {error})"
        raise SampleError("line", ", ".join(map(str, record)), why) from error


def _wavalign(record: Record) -> Record:
    return record


def _sharegpt(record: Record) -> Record:
    """``conversations`` of from and value, or of role and content; ``system``; ``audios`` or ``audio``."""
    talk = _talk(record)
    messages = [
        {**turn, "role": ROLES.get(role := turn.get("from", turn.get("role")), role), "content": _content(turn)}
        for turn in talk
    ]
    return _with_system(record, messages)


def _talk(record: Record) -> Any:
    return record.pop(next((name for name in TALKS if name in record), "conversations"))


def _content(turn: Mapping[str, Any]) -> Any:
    return turn["value"] if "value" in turn else turn.get("content")


def _swift(record: Record) -> Record:
    """``query`` and ``response``; alpaca's ``instruction``, ``input``, ``output``; pairs of human and assistant."""
    if any(name in record for name in TALKS):
        pairs = [(pair["human"], pair.get("assistant")) for pair in _talk(record)]
    else:
        pairs = [(query, response) for query, response in record.pop("history", None) or []]
        words = [record.pop(name) for name in ("instruction", "input") if record.get(name)]
        words += [record.pop(name) for name in QUERIES if record.get(name)][:1]
        response = next((record.pop(name) for name in RESPONSES if record.get(name) is not None), None)
        pairs.append(("\n".join(words), response))
    messages = []
    for query, response in pairs:
        messages.append({"role": "user", "content": query})
        if response is not None:
            messages.append({"role": "assistant", "content": response})
    return _with_system(record, messages)


def _voicebench(record: Record) -> Record:
    """``audio`` is the question, ``prompt`` its words, ``reference`` (or ``output``) the answer."""
    answers = [record.pop(name) for name in ("reference", "output") if record.get(name)]
    ours = {"question_text": record.pop("prompt", None), "target_text": answers[0] if answers else None}
    return _filled(record, ours | {"messages": _asked(record.pop("audio"))})


def _uro_bench(record: Record) -> Record:
    """``source_wav`` is the question, ``source_text`` its words, ``target_text`` the answer."""
    if "dialogue" in record:
        rounds = len(record["dialogue"])
        why = f"has {rounds} rounds, whose answers the benchmark leaves to the model: give dialogues with answers"
        raise SampleError("dialogue", record["dialogue"], why)
    ours = {"question_text": record.pop("source_text", None), "messages": _asked(record.pop("source_wav"))}
    return _filled(record, ours)


def _kimi(record: Record) -> Record:
    """``conversation`` of role, message_type (text or audio) and content; a turn may be several messages."""
    talk = _talk(record)
    messages: list[Record] = []
    for message in talk:
        kind, content = message["message_type"], message["content"]
        if kind not in ("text", "audio", "audio-text"):
            raise SampleError("message_type", kind, "is not known: text, audio or audio-text")
        audio, text = content if kind == "audio-text" else (content, None) if kind == "audio" else (None, content)
        if not messages or messages[-1]["role"] != message["role"]:
            messages.append({"role": message["role"], "content": []})
        messages[-1]["content"] += [{"type": "audio", "audio": audio}] if audio else []
        messages[-1]["content"] += [{"type": "text", "text": text}] if text else []
    return _filled(record, {"messages": messages})


def _asked(audio: Any) -> list[Record]:
    return [{"role": "user", "content": [{"type": "audio", "audio": audio}]}]


def _with_system(record: Record, messages: list[Record]) -> Record:
    system = record.pop("system", None)
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    audio = record.pop("audio", None)
    return _filled(record, {"messages": messages} | ({"audios": audio} if audio is not None else {}))


def _filled(record: Record, ours: Record) -> Record:
    """``record`` with our fields, where it has none of that name itself."""
    return ours | {name: value for name, value in record.items() if value is not None or name not in ours}


SHAPES: dict[str, Callable[[Record], Record]] = {
    "wavalign": _wavalign,
    "sharegpt": _sharegpt,
    "swift": _swift,
    "voicebench": _voicebench,
    "uro-bench": _uro_bench,
    "kimi": _kimi,
}
