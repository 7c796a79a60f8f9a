"""Lines of other projects, by ``--format`` or found out; the shapes are those of their own pages and code."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from field import field

from wavalign_ext.data.prepare.dialogue import Sample, parse
from wavalign_ext.data.prepare.lines import read_lines
from wavalign_ext.data.prepare.messages import HEARD, SampleError
from wavalign_ext.data.prepare.shapes import SHAPES, shape_of

OURS = {"target_text": "seven", "target_audio": "a.wav"}


def told(sample: Sample) -> tuple[list[tuple[str, str, list[Any]]], str, list[Any]]:
    """Roles, words and files of a dialogue, the target's words and files."""
    turns = [(turn.role, turn.text, [clip.source for clip in turn.clips]) for turn in sample.turns]
    return turns, sample.target_text, [clip.source for clip in sample.target]


SHAREGPT = [
    {
        "conversations": [{"from": "human", "value": "<audio>And four?"}, {"from": "gpt", "value": "seven<audio>"}],
        "system": "be kind",
        "audios": ["q.wav", "a.wav"],
    },
    {
        "conversations": [
            {"from": "system", "value": "be kind"},
            {"from": "human", "value": "<audio>And four?"},
            {"from": "gpt", "value": "seven"},
        ],
        "audios": ["q.wav"],
        "target_audio": "a.wav",
    },
    {
        "conversation": [{"role": "user", "content": "<audio>And four?"}, {"role": "assistant", "content": "seven"}],
        "system": "be kind",
        "audio": "q.wav",
        "answer_audio": "a.wav",
    },
    {
        "messages": [{"from": "user", "value": "<audio>And four?"}, {"from": "bot", "value": "seven"}],
        "system": "be kind",
        "audios": ["q.wav"],
        "target_audio": "a.wav",
    },
]
SWIFT = [
    {"system": "be kind", "query": "<audio>And four?", "response": "seven<audio>", "audios": ["q.wav", "a.wav"]},
    {
        "system": "be kind",
        "instruction": "<audio>And four?",
        "output": "seven",
        "audios": "q.wav",
        "target_audio": "a.wav",
    },
    {
        "system": "be kind",
        "conversation": [{"human": "<audio>And four?", "assistant": "seven"}],
        "audios": ["q.wav"],
        "target_audio": "a.wav",
    },
]
KIMI = [
    {
        "conversation": [
            {"role": "system", "message_type": "text", "content": "be kind"},
            {"role": "user", "message_type": "audio", "content": "q.wav"},
            {"role": "user", "message_type": "text", "content": "And four?"},
            {"role": "assistant", "message_type": "audio-text", "content": ["a.wav", "seven"]},
        ]
    },
    {
        "messages": [
            {"role": "system", "message_type": "text", "content": "be kind"},
            {"role": "user", "message_type": "audio", "content": "q.wav"},
            {"role": "user", "message_type": "text", "content": "And four?"},
            {"role": "assistant", "message_type": "audio", "content": "a.wav"},
            {"role": "assistant", "message_type": "text", "content": "seven"},
        ],
    },
    {
        "task_type": "speech2speech",
        "conversation": [
            {"role": "system", "message_type": "text", "content": "be kind"},
            {"role": "user", "message_type": "audio", "content": "q.wav"},
            {"role": "user", "message_type": "text", "content": "And four?"},
            {"role": "assistant", "message_type": "audio", "content": "a.wav"},
        ],
        "target_text": "seven",
    },
]


@pytest.mark.parametrize(
    ("shape", "record"),
    [*(("sharegpt", r) for r in SHAREGPT), *(("swift", r) for r in SWIFT), *(("kimi", r) for r in KIMI)],
)
@pytest.mark.parametrize("asked", [True, False], ids=["asked", "found"])
def test_dialogues_are_read_in_other_projects_shapes(shape: str, record: dict[str, Any], asked: bool) -> None:
    before = json.dumps(record)
    assert shape_of(record) == shape
    turns, text, files = told(parse(record, shape if asked else "auto"))
    assert turns == [("system", "be kind", []), ("user", "And four?", ["q.wav"])]
    assert (text, files) == ("seven", ["a.wav"]) and json.dumps(record) == before


def test_earlier_turns_stay() -> None:
    record = {"query": "<audio>c", "response": "d", "history": [["<audio>a", "b"]], "audios": ["1", "2"]}
    turns, text, _ = told(parse(record | {"target_audio": "a.wav"}))
    assert turns == [("user", "a", ["1"]), ("assistant", "b", []), ("user", "c", ["2"])] and text == "d"


BENCHMARKS = [
    ("voicebench", {"prompt": "three plus four", "audio": {"path": "q.wav"}, "reference": "seven"}),
    ("voicebench", {"prompt": "three plus four", "audio": "q.wav", "output": "seven"}),
    ("voicebench", {"prompt": "three plus four", "audio": {"bytes": None, "path": "q.wav"}, "target_text": "seven"}),
    ("uro-bench", {"id": 1, "source_wav": "q.wav", "source_text": "three plus four", "target_text": "seven"}),
    ("uro-bench", {"source_wav": "q.wav", "question_text": "three plus four", "target_text": "seven", "x": 1}),
    ("uro-bench", {"source_wav": "q.wav", "source_text": "three plus four", "answer_text": "seven"}),
]


@pytest.mark.parametrize(("shape", "record"), BENCHMARKS)
def test_benchmarks_are_questions_that_want_a_recorded_answer(shape: str, record: dict[str, Any]) -> None:
    with pytest.raises(SampleError, match=r"target_audio='None': no target: give a recording of the answer"):
        parse(record)
    sample = parse(record | {"target_audio": "a.wav"}, shape)
    assert shape_of(record) == shape and sample.question == "three plus four"
    assert told(sample) == ([("user", "", ["q.wav"])], "seven", ["a.wav"])


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_rounds_without_answers_are_refused(rounds: int) -> None:
    dialogue = [{"round": n, "source_wav": "q.wav", "source_text": "q"} for n in range(rounds)]
    with pytest.raises(SampleError, match=f"dialogue=.*has {rounds} rounds, whose answers the benchmark leaves"):
        parse({"id": 1, "num_round": rounds, "dialogue": dialogue})


SOUND = base64.b64encode(b"sound").decode()
PARTS = {
    "transformers, path": ({"type": "audio", "path": "q.wav"}, "q.wav"),
    "transformers, url": ({"type": "audio", "url": "q.wav"}, "q.wav"),
    "transformers, base64": ({"type": "audio", "base64": SOUND}, {"bytes": SOUND}),
    "transformers, array": (one := {"type": "audio", "audio": {"array": [0.5], "sampling_rate": 16000}}, one["audio"]),
    "Qwen2-Audio": ({"type": "audio", "audio_url": "q.wav"}, "q.wav"),
    "datasets' Audio": ({"type": "audio", "audio": {"bytes": None, "path": "q.wav"}}, "q.wav"),
    "OpenAI": ({"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}, {"bytes": SOUND}),
    "vLLM": (
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{SOUND}"}},
        f"data:audio/wav;base64,{SOUND}",
    ),
    "from audios": ({"type": "audio"}, "first.wav"),
}


@pytest.mark.parametrize(("part", "source"), PARTS.values(), ids=PARTS)
def test_parts_of_messages_are_read_as_others_write_them(part: dict[str, Any], source: Any) -> None:
    content = [part, {"type": "input_text", "text": "And four?"}]
    audios = ["first.wav"] if source == "first.wav" else []
    sample = parse({"messages": [{"role": "user", "content": content}], "audios": audios, **OURS})
    assert told(sample)[0] == [("user", "And four?", [source])] and sample.clips[0].role == HEARD


def test_an_answer_of_openai_s_api_is_a_target() -> None:
    answer = {"role": "assistant", "content": None, "audio": {"id": "x", "data": SOUND, "transcript": "seven"}}
    sample = parse({"messages": [{"role": "user", "content": [PARTS["OpenAI"][0]]}, answer]})
    assert told(sample)[1:] == ("seven", [{"bytes": SOUND}])


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"wavalign"}))
@pytest.mark.parametrize("record", [{"a": 1}, {"messages": 3, "conversation": 4}, {"conversations": [7]}])
def test_a_line_of_another_shape_than_asked_for_is_named(shape: str, record: Any) -> None:
    with pytest.raises(SampleError) as caught:
        parse(record, shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("record", [{"text": "a", "wav": "b"}, {"input": "a"}, {"segments": [], "speaker": "x"}])
def test_a_line_that_nobody_knows_is_told_its_keys(record: dict[str, Any]) -> None:
    with pytest.raises(SampleError, match=f"the line has {', '.join(record)}: see --format"):
        parse(record)


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("llamafactory_audio", "wavalign", "give a recording of the answer"),
        ("swift_query_response", "swift", "give a recording of the answer"),
        ("voicebench", "voicebench", "give a recording of the answer"),
        ("hf_audio_placeholder_parts", "wavalign", None),
        ("target_in_messages_text_given", "wavalign", None),
    ],
)
def test_field_lines_are_read(name: str, shape: str, problem: str | None, tmp_path: Path) -> None:
    (line,) = read_lines(field(f"jsonl/{name}.jsonl"))
    assert line.shape == shape and bool(line.problems) == bool(problem)
    if problem is None:
        assert line.sample and line.sample.target_text == "the capital of greece is athens"
        assert [clip.source for clip in line.sample.clips] == ["q.wav", "a.wav"]
    else:
        assert problem in str(line.problems[0])
