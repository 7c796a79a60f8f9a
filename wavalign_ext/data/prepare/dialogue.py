"""One line of JSONL as a dialogue: turns of text and clips, and the target. No audio is read here.

The field names of the public WavAlign release are accepted beside ours (``ALIASES``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from wavalign_ext.data.prepare.messages import (
    HEARD,
    SPOKEN,
    Clip,
    SampleError,
    Turn,
    check_placeholders,
    check_source,
    check_strings,
    make_turns,
)
from wavalign_ext.data.prepare.shapes import as_ours

ALIASES = {
    "messages": ("messages",),
    "audios": ("audios",),
    "target_text": ("target_text", "sft_target_text", "answer_text"),
    "target_audio": ("target_audio", "sft_target_audio", "answer_audio", "answer_audio_path"),
    "rejected_text": ("rejected_text",),
    "rejected_audio": ("rejected_audio",),
    "chosen_score": ("chosen_score",),
    "rejected_score": ("rejected_score",),
    "question_text": ("question_text",),
    "question_audio": ("question_audio",),
    "history_text": ("history_text", "history"),
    "task_type": ("task_type",),
    "keywords": ("keywords",),
    "data_source": ("data_source", "source_dataset"),
    "id": ("id",),
}
KNOWN = {name for names in ALIASES.values() for name in names}


@dataclass(frozen=True)
class Sample:
    """A dialogue up to the answer, and the answer: the target, whose clips are spoken one after the other.

    Of a pair also the worse answer, and both scores.
    """

    turns: tuple[Turn, ...]
    target_text: str
    target: tuple[Clip, ...]
    question: str | None
    task: str
    data_source: str | None = None
    id: str | None = None
    keywords: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    rejected_text: str | None = None
    rejected: Clip | None = None
    scores: tuple[float | None, float | None] = (None, None)

    @property
    def asked(self) -> list[Clip]:
        """The clips that the answer answers: those of the user since the assistant's last turn; none where he wrote."""
        last = max((n for n, turn in enumerate(self.turns) if turn.role == "assistant"), default=-1)
        return [clip for turn in self.turns[last + 1 :] if turn.role == "user" for clip in turn.clips]

    @property
    def heard(self) -> list[Clip]:
        """The clips that the model hears, in the prompt's order."""
        return [clip for turn in self.turns for clip in turn.clips if clip.role == HEARD]

    @property
    def clips(self) -> list[Clip]:
        """Every clip that has to be encoded: of the turns, of the target, of the worse answer."""
        return [*(clip for turn in self.turns for clip in turn.clips), *self.target, *self.worse]

    @property
    def worse(self) -> list[Clip]:
        """The recording of the worse answer, where there is one."""
        return [] if self.rejected is None else [self.rejected]


def parse(record: Any, shape: str = "auto", speaks: bool = True) -> Sample:
    """A line's object as a sample; ``shape`` is one of :data:`shapes.SHAPES`, or "auto".

    Turns of the assistant after the last one of the user are the target where no field gives one: their words, and
    all their clips, in order. Where fields give both, those turns are dropped, as the public release drops them.
    ``speaks`` is False for a model that answers in text alone: recordings of answers are left out.

    Raises:
        SampleError: names the first field that is wrong.
    """
    if not isinstance(record, Mapping):
        raise SampleError("line", record, "is not a JSON object: write one object per line")
    check_strings(record)
    keys, record = list(record), as_ours(record, shape)
    values = {name: _one(record, names) for name, names in ALIASES.items()}
    if values["messages"] is None and values["question_audio"] is None:
        raise SampleError("messages", None, f"is no list of messages; the line has {', '.join(keys)}: see --format")
    turns = make_turns(values | {"history_text": _text(values, "history_text")})
    closing: list[Turn] = []
    while turns and turns[-1].role == "assistant":
        closing.insert(0, turns.pop())
    if not any(turn.role == "user" and turn.clips for turn in turns):
        raise SampleError("messages", values["messages"], "the user says nothing: put <|audio|> and a file in audios")
    text, target = _target(values, closing, speaks)
    if not speaks:
        turns = [replace(turn, parts=(turn.text,)) if turn.role == "assistant" else turn for turn in turns]
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
        **_worse(values, text, speaks),
    )


def _worse(values: Mapping[str, Any], text: str, speaks: bool) -> dict[str, Any]:
    """The worse answer of a pair; nothing where the line has none."""
    worse, audio = _text(values, "rejected_text"), values["rejected_audio"]
    if worse is None and audio is None:
        return {}
    if worse is None or (audio is None and speaks):
        name = "rejected_text" if worse is None else "rejected_audio"
        raise SampleError(name, None, "half of the worse answer: give rejected_text and rejected_audio, or neither")
    if worse == text and (audio == values["target_audio"] or not speaks):
        raise SampleError("rejected_text", worse, "is the target itself: nothing is preferred; take the line out")
    check_placeholders(worse, "rejected_text", "take it out, and name the recording in rejected_audio")
    scores = (values["chosen_score"], values["rejected_score"])
    for name, score in zip(("chosen_score", "rejected_score"), scores, strict=True):
        if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
            raise SampleError(name, score, "is no number: give one, or leave it out")
    clip = Clip("rejected_audio", check_source(audio, "rejected_audio"), SPOKEN) if speaks else None
    return {"rejected_text": worse, "rejected": clip, "scores": scores}


def _target(values: Mapping[str, Any], closing: list[Turn], speaks: bool) -> tuple[str, tuple[Clip, ...]]:
    """The answer's words and clips, from fields or else from the turns that close the dialogue."""
    text, source = _text(values, "target_text"), values["target_audio"]
    said = " ".join(turn.text for turn in closing if turn.text) or None
    if source is not None:
        sources = source if isinstance(source, list) else [source]
        names = ["target_audio"] if sources == [source] else [f"target_audio[{n}]" for n in range(len(sources))]
        target = tuple(Clip(name, check_source(one, name), SPOKEN) for name, one in zip(names, sources, strict=True))
    else:
        target = tuple(clip for turn in closing for clip in turn.clips)
        if target and text and said and text != said:
            raise SampleError("target_text", text, f"is not what the recorded answer in messages says ({said!r:.80})")
    text = text or said
    if text is None:
        raise SampleError("target_text", text, "no target: give the answer in words (target_text)")
    if speaks and not target:
        raise SampleError("target_audio", source, "no target: give a recording of the answer (target_audio)")
    check_placeholders(text, "target_text", "take it out, and name recordings in target_audio")
    return text, target if speaks else ()


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
