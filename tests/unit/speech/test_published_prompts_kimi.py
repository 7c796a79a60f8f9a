"""Kimi-Audio's prompts, id by id on both streams, as its published prompt manager makes them.

The expected ids came out of ``KimiAPromptManager.get_prompt(messages, output_type="both")`` itself
(kimia_infer/api/prompt_manager.py of MoonshotAI/Kimi-Audio), run with the small tokenizer of ``published_kimi``
("It" 262, " four" 261, " is" 257, "What" 265) and a speech tokenizer that hears 7, 0, 16383; nothing of them comes from
our layout.
"""

from typing import Any

import numpy as np
import published_kimi as kimi
import pytest

from wavalign_ext.checkpoints import convert, kimi_audio
from wavalign_ext.data.prepare.dialogue import parse
from wavalign_ext.data.prepare.messages import SPOKEN
from wavalign_ext.data.prepare.rows import RowMaker
from wavalign_ext.data.prepare.setup import Setup
from wavalign_ext.parallel.pairs import heard_places
from wavalign_ext.speech.chat import prompt_ids
from wavalign_ext.speech.layout import load_layout

USER, ANSWER, BLANK, END = 151670, 151671, 151666, 151645
HEARD = [151661, 152071, 152064, 168447, 151663]  # media_begin, codes, media_end
ASKED = [*HEARD, 151676, END]  # ctd: an answer in both streams is wanted
SPOKEN_CODES = [11, 12, 13, 14, 15]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Tokenizer and configuration of a converted model, without its weights."""
    from transformers import AutoTokenizer

    source = tmp_path_factory.mktemp("kimi")
    kimi.write_files(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "move_weights", lambda *_: None)
        patch.setattr(kimi_audio, "keep_the_rest", lambda *_: None)
        plan = convert.convert("kimi-audio", source, source / "converted")
    return AutoTokenizer.from_pretrained(source / "converted"), plan.config


def built(converted: tuple[Any, Any], *messages: tuple[str, str]) -> tuple[list[int], list[int], list[bool]]:
    """(audio, text, heard) by published ids, of the row which ``wavalign prepare`` makes."""
    tokenizer, config = converted
    given = [{"role": role, "content": content} for role, content in messages]
    clips = sum(content.count("<|audio|>") for _, content in messages)
    record = {"messages": given, "audios": ["clip.wav"] * clips, "target_text": "It", "target_audio": "target.wav"}
    sample = parse(record)
    codes = {clip.name: np.array(SPOKEN_CODES if clip.role == SPOKEN else [7, 0, 16383]) for clip in sample.clips}
    layout: Any = load_layout("kimi_audio").resolve(tokenizer)
    prompt = RowMaker(Setup(layout, tokenizer, {}), None)(sample, codes).prompt
    text, audio = layout.frames(layout.prompt(prompt_ids(tokenizer, prompt)))
    published = {kimi_audio.audio_ids(kimi.OFFSET)[ours]: kimi.SPECIAL[its] for ours, its in kimi_audio.CONTROL.items()}
    heard = heard_places(config, audio).tolist()
    return [published.get(i, i) for i in audio.tolist()], text.tolist(), heard


def test_one_spoken_question(converted: tuple[Any, Any]) -> None:
    audio, text, heard = built(converted, ("user", "<|audio|>"))
    assert audio == [151670, 151661, 152071, 152064, 168447, 151663, 151676, 151645, 151671]
    assert text == [BLANK] * 9
    assert heard == [False, False, True, True, True, False, False, False, False]


def test_an_instruction_and_a_recording(converted: tuple[Any, Any]) -> None:
    audio, text, heard = built(converted, ("user", "It is<|audio|>"))
    assert audio == [USER, BLANK, BLANK, *ASKED, ANSWER]
    assert text == [BLANK, 262, 257, *[BLANK] * 8]
    assert [n for n, is_heard in enumerate(heard) if is_heard] == [4, 5, 6]


def test_an_earlier_answer_as_text(converted: tuple[Any, Any]) -> None:
    audio, text, heard = built(converted, ("user", "<|audio|>"), ("assistant", "It is four"), ("user", "<|audio|>"))
    assert audio == [USER, *ASKED, ANSWER, BLANK, BLANK, BLANK, END, USER, *ASKED, ANSWER]
    assert text == [*[BLANK] * 9, 262, 257, 261, *[BLANK] * 10]
    assert [n for n, is_heard in enumerate(heard) if is_heard] == [2, 3, 4, 15, 16, 17]


def test_an_earlier_answer_with_its_speech(converted: tuple[Any, Any]) -> None:
    """As the later prompt manager's "audio-text" has it, but for the text's end, which it leaves blank.

    Second-hand: kimia_infer/api/prompt_manager.py of danjuan-77/Kimi-Audio, a fork for fine-tuning. The sampler of
    kimia_infer/api/kimia.py feeds the end back, so an answer that the model gave has it.
    """
    messages = (("user", "<|audio|>"), ("assistant", "It is four<|audio|>"), ("user", "<|audio|>"))
    audio, text, heard = built(converted, *messages)
    spoken = [*[BLANK] * 6, *(kimi.OFFSET + code for code in SPOKEN_CODES)]
    assert audio == [USER, *ASKED, ANSWER, *spoken, END, USER, *ASKED, ANSWER]
    assert text == [*[BLANK] * 9, 262, 257, 261, 151667, *[BLANK] * 17]
    assert [n for n, is_heard in enumerate(heard) if is_heard] == [2, 3, 4, 23, 24, 25]


def test_a_written_question(converted: tuple[Any, Any]) -> None:
    tokenizer, _ = converted
    layout: Any = load_layout("kimi_audio").resolve(tokenizer)
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "What is"}])
    text, audio = layout.frames(layout.prompt(ids))
    assert text.tolist() == [BLANK, 265, 257, BLANK, BLANK]
    assert [tokenizer.convert_ids_to_tokens(int(i)) for i in audio] == [
        "<|audio_user_msg_start|>", "<|audio_blank|>", "<|audio_blank|>", "<|audio_msg_end|>",
        "<|audio_assistant_msg_start|>",
    ]  # fmt: skip


def test_a_system_message_is_what_the_user_says_first(converted: tuple[Any, Any]) -> None:
    """The published manager refuses the role ``system``; two messages of a user in a row are one turn there."""
    messages = (("system", "It is"), ("user", " four<|audio|>"), ("assistant", "It is four"), ("user", "What<|audio|>"))
    audio, text, _ = built(converted, *messages)
    later = [USER, BLANK, *ASKED, ANSWER]
    assert audio == [USER, BLANK, BLANK, BLANK, *ASKED, ANSWER, BLANK, BLANK, BLANK, END, *later]
    assert text == [BLANK, 262, 257, 261, *[BLANK] * 8, 262, 257, 261, BLANK, BLANK, 265, *[BLANK] * 8]
