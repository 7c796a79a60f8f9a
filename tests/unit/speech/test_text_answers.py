"""Answers in text alone, of a model that hears: Qwen2-Audio's layout, beside transformers' own processor."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

from wavalign_ext.data.prepare.dialogue import parse
from wavalign_ext.data.prepare.messages import SampleError
from wavalign_ext.pocket.tokens import build_tokenizer
from wavalign_ext.speech.chat import prompt_ids
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.encoders.whisper import Qwen2Audio
from wavalign_ext.speech.layout import SPEECH, TEXT, LayoutError, ResolvedLayout, load_layout
from wavalign_ext.speech.token_names import TokenRange

WORDS = "system user assistant you are a helpful what is that sound and this one glass"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Words, and the special tokens by their names; the ids are not the published ones."""
    plain = load_layout("qwen2_audio")
    names = replace(
        plain, user_speech=TokenRange("<|AUDIO|>", 1), speech=TokenRange("<|x_{}|>", 1), begin="<|audio_bos|>",
        end="<|audio_eos|>",
    )  # fmt: skip
    made = build_tokenizer([WORDS], names)
    made.chat_template = plain.chat.template
    return made


@pytest.fixture(scope="module")
def layout(tokenizer: Any) -> ResolvedLayout:
    return load_layout("qwen2_audio").resolve(tokenizer)


def frames(samples: int) -> int:
    """Of the encoder, without its weights."""
    return Qwen2Audio._frames(Qwen2Audio.__new__(Qwen2Audio), samples)


@pytest.mark.parametrize("turns", [(16000,), (160000, 16161), (481, 48000, 321)])
def test_a_golden_prompt(tokenizer: Any, layout: ResolvedLayout, turns: tuple[int, ...]) -> None:
    """Qwen2AudioProcessor.apply_chat_template and __call__ on the same dialogue, a recording and words in each turn."""
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)
    theirs, ours = [], []
    for samples in turns:
        sound = {"type": "audio", "audio_url": "a.wav"}
        theirs.append({"role": "user", "content": [sound, {"type": "text", "text": "what is that sound"}]})
        said = layout.user_speech_prompt([0] * frames(samples))
        ours.append({"role": "user", "content": f"{said}what is that sound"})
        if len(ours) < 2 * len(turns) - 1:
            for dialogue in (theirs, ours):
                dialogue.append({"role": "assistant", "content": "glass"})
    text = processor.apply_chat_template(
        theirs, add_generation_prompt=True, tokenize=False, chat_template=processor.default_chat_template
    )
    waves = [np.zeros(samples, np.float32) for samples in turns]
    wanted = processor(text=text, audio=waves, sampling_rate=16000)["input_ids"][0]
    assert prompt_ids(tokenizer, ours) == list(wanted)
    assert sum(i == layout.user_speech_start for i in wanted) == sum(map(frames, turns))


def test_an_answer_is_text_and_an_end(tokenizer: Any, layout: ResolvedLayout) -> None:
    text = tokenizer.encode("glass", add_special_tokens=False)
    target = layout.target(text, [])
    assert target == [*text, layout.eos_ids[0]] and not layout.speaks
    found = layout.split([*target, layout.pad_id])
    assert (found.text_ids, found.codes, found.errors, found.ended) == (text, [], [], True)
    assert layout.split([layout.eos_ids[0]]).errors == ["schedule violated: the response is empty"]
    heard = layout.split([*text, layout.user_speech_start])
    assert heard.errors == [f"the user's speech in a response: 1, first at position {len(text)}"]
    assert layout.modality([*target, layout.user_speech_start]).tolist() == [TEXT] * len(target) + [SPEECH]


@pytest.mark.parametrize(("words", "codes"), [([], []), ([5], [1]), ([], [1])])
def test_other_answers_are_refused(layout: ResolvedLayout, words: list[int], codes: list[int]) -> None:
    counts = f"{len(words)} text tokens and {len(codes)} codes"
    with pytest.raises(LayoutError, match=f"'qwen2_audio': a response needs text alone, not {counts}: fix or drop"):
        layout.interleave(words, codes)


def test_its_codec_has_no_codes() -> None:
    codec = load_codec({"type": "none"})
    assert codec.codebook_size == 0 and codec.decode([]).shape == (0,) and codec.sample_rate == 16000
    with pytest.raises(ValueError, match="the codec 'none' has no codes"):
        codec.encode(np.zeros(16000, np.float32))
    with pytest.raises(ValueError, match="has no code 3"):
        codec.decode([3])


def test_recordings_of_answers_are_left_out() -> None:
    turns = [
        {"role": "user", "content": "<|audio|>"},
        {"role": "assistant", "content": "glass<|audio|>"},
        {"role": "user", "content": "<|audio|>"},
    ]
    line = {"messages": turns, "audios": ["q.wav", "a.wav", "r.wav"], "target_text": "this one"}
    with pytest.raises(SampleError, match="no target: give a recording"):
        parse(line)
    for more in ({}, {"target_audio": "t.wav"}):
        sample = parse(line | more, speaks=False)
        assert sample.target == () and [clip.source for clip in sample.clips] == ["q.wav", "r.wav"]
        assert sample.turns[1].text == "glass"
    pair = parse(line | {"rejected_text": "that one"}, speaks=False)
    assert (pair.rejected_text, pair.rejected, pair.worse) == ("that one", None, [])
    with pytest.raises(SampleError, match="is the target itself"):
        parse(line | {"rejected_text": "this one"}, speaks=False)


def test_text_alone_has_no_turns_and_needs_an_encoder(tokenizer: Any) -> None:
    plain = load_layout("qwen2_audio")
    with pytest.raises(LayoutError, match="without speech there are no turns: take out schedule, begin and end"):
        replace(plain, schedule=((1, 4),)).resolve(tokenizer)
    with pytest.raises(LayoutError, match="speech is missing: give pattern and count"):
        replace(plain, encoder=None, user_speech=None).resolve(tokenizer)
