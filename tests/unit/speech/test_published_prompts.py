"""Prompts token by token, as the published inference code of each model sends them.

The expected side is written from that code, which each test names; nothing in it comes from our layouts or twins. An
item of an expected list is a special token by name, or text between two of them.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from wavalign_ext.checkpoints import convert
from wavalign_ext.data.prepare.dialogue import Sample, parse
from wavalign_ext.data.prepare.messages import SPOKEN, Clip, Turn
from wavalign_ext.data.prepare.rows import RowMaker
from wavalign_ext.data.prepare.setup import Setup
from wavalign_ext.speech.layout import load_layout

AUDIO = [f"<|audio_{code}|>" for code in range(16384)]
BEGIN, END = "<|begin_of_audio|>", "<|end_of_audio|>"
HEARD, ANSWER = [7, 0, 16383], [11, 12, 13, 14, 15]
WORDS = "It is four"  # three tokens in both tokenizers below
QUESTION = "What is two plus two?"


def names(codes: Sequence[int]) -> list[str]:
    return [AUDIO[code] for code in codes]


def ids(tokenizer: Any, items: Sequence[str]) -> list[int]:
    """Special tokens by name, text by the tokenizer."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    found: list[int] = []
    for item in items:
        known = item in special
        found += [tokenizer.convert_tokens_to_ids(item)] if known else tokenizer.encode(item, add_special_tokens=False)
        assert known or not item.startswith(("<|", "[")), item
    return found


def built(layout: str, tokenizer: Any, messages: Any, system: str | None = None) -> list[int]:
    """The ids that verl makes of the row which ``wavalign prepare`` makes; every clip of the user says ``HEARD``."""
    record = {"messages": messages, "target_text": WORDS, "target_audio": "target.wav"}
    clips = sum(message["content"].count("<|audio|>") for message in messages)
    sample = parse({**record, "audios": ["clip.wav"] * clips}) if clips else written(messages)
    codes = {clip.name: np.array(ANSWER if clip.role == SPOKEN else HEARD) for clip in sample.clips}
    maker = RowMaker(Setup(load_layout(layout).resolve(tokenizer), tokenizer, {}), system)
    prompt = maker(sample, codes).prompt
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)


def written(messages: Any) -> Sample:
    turns = tuple(Turn(message["role"], (message["content"],)) for message in messages)
    return Sample(turns, WORDS, (Clip("target_audio", "target.wav", SPOKEN),), None, "s2s")


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def convert_tokenizer(kind: str, source: Path, target: Path) -> Any:
    """The tokenizer of a converted model, without its weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "move_weights", lambda *_: None)
        convert.convert(kind, source, target)
    return AutoTokenizer.from_pretrained(target)


# --- VITA-Audio (VITA-MLLM/VITA-Audio) ----------------------------------------------------------------------

LUKE = "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."
LUCY = "Your Name: Lucy\nYour Gender: female\nRespond in a text-audio interleaved manner."
# tokenizer_config.json of vita_audio/models/qwen2_mtp_v4_48_3 adds a system message where there is none; every
# inference program replaces that template by evaluation/get_chat_template.py, which does not.
WITH_DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are a helpful assistant"
    "<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VITA_LAYOUTS = ("vita_audio_balance", "vita_audio_boost")


@pytest.fixture(scope="module")
def vita(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Qwen's byte-level BPE with the tokens that update_tokenizer_for_glm4voice (tokenizer_glm4voice.py) adds."""
    source = tmp_path_factory.mktemp("vita")
    corpus = [LUKE, LUCY, QUESTION, WORDS, "system\n", "user\n\n", "assistant\n", "Convert the speech to text.\n"]
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(corpus * 2, 2000, show_progress=False)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", BEGIN, END, "<|audio|>"]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in specials], special_tokens=True)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in AUDIO])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = WITH_DEFAULT_SYSTEM
    tokenizer.save_pretrained(source)
    sizes = dict(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
    config = {"model_type": "qwen2_mtp", "num_hidden_layers": 2, "vocab_size": len(tokenizer), **sizes}
    (source / "config.json").write_text(json.dumps(config))
    converted = convert_tokenizer("vita-audio", source, source / "converted")
    assert len(converted.encode(WORDS)) == 3 and len(converted.encode("user\n\n")) == 2  # "\n\n" is one token of Qwen's
    return converted


def chatml(role: str, *items: str) -> list[str]:
    """A turn of evaluation/get_chat_template.py's qwen2_chat_template; the newline after <|im_end|> belongs to it."""
    first, *others = items
    if first.startswith("<|"):
        return ["<|im_start|>", f"{role}\n", *items, "<|im_end|>", "\n"]
    return ["<|im_start|>", f"{role}\n{first}", *others, "<|im_end|>", "\n"]


VITA_END = ["<|im_start|>", "assistant\n"]
VITA_HEARD = ["\n", BEGIN, *names(HEARD), END]  # message "" + "\n<|audio|>" in S2SInference.run_infer
# dataset_qwen2.py, preprocess: earlier answers pass text_audio_interval (audio_processor.py) with the model's ratio.
VITA_ANSWERS = {
    "vita_audio_balance": ["It", BEGIN, *names([11, 12]), END, " is four", BEGIN, *names([13, 14, 15]), END],
    "vita_audio_boost": ["It is four", BEGIN, *names(ANSWER), END],
}


@pytest.mark.parametrize("layout", VITA_LAYOUTS)
def test_vita_hears_one_turn(vita: Any, layout: str) -> None:
    """tools/inference_sts.py, S2SInference.run_infer with mode="luke"."""
    wanted = [*chatml("system", LUKE), *chatml("user", *VITA_HEARD), *VITA_END]
    assert built(layout, vita, [said("user", "<|audio|>")]) == ids(vita, wanted)


@pytest.mark.parametrize("layout", VITA_LAYOUTS)
def test_vita_hears_several_turns_and_what_it_said(vita: Any, layout: str) -> None:
    """vita_audio/data/dataset_qwen2.py, preprocess (roles and interleaved answers)."""
    messages = [said("user", "<|audio|>"), said("assistant", WORDS + "<|audio|>"), said("user", "<|audio|>")]
    user = chatml("user", *VITA_HEARD)
    wanted = [*chatml("system", LUKE), *user, *chatml("assistant", *VITA_ANSWERS[layout]), *user, *VITA_END]
    assert built(layout, vita, messages) == ids(vita, wanted)


def test_vita_gets_earlier_answers_as_text_where_the_data_has_only_text(vita: Any) -> None:
    """web_demo.py, predict, task "Spoken QA": the history has the text of its answers."""
    messages = [said("user", QUESTION), said("assistant", WORDS), said("user", "<|audio|>")]
    dialogue = [*chatml("user", QUESTION), *chatml("assistant", WORDS), *chatml("user", *VITA_HEARD)]
    wanted = [*chatml("system", LUKE), *dialogue, *VITA_END]
    assert built("vita_audio_boost", vita, messages) == ids(vita, wanted)


@pytest.mark.parametrize("layout", VITA_LAYOUTS)
def test_vita_takes_a_system_prompt_of_the_user_s(vita: Any, layout: str) -> None:
    """evaluation/evaluate_sqa.py, STSDataset.__getitem__: a sample's own system message replaces the default."""
    wanted = [*chatml("system", LUCY), *chatml("user", *VITA_HEARD), *VITA_END]
    assert built(layout, vita, [said("system", LUCY), said("user", "<|audio|>")]) == ids(vita, wanted)
    assert built(layout, vita, [said("user", "<|audio|>")], system=LUCY) == ids(vita, wanted)


@pytest.mark.parametrize("layout", VITA_LAYOUTS)
def test_vita_reads_a_written_turn(vita: Any, layout: str) -> None:
    """web_demo.py, predict: a written question has no newline; inference_sts.py, mode=None: no system message."""
    wanted = [*chatml("system", LUKE), *chatml("user", QUESTION), *VITA_END]
    assert built(layout, vita, [said("user", QUESTION)]) == ids(vita, wanted)
    none = [*chatml("user", QUESTION), *VITA_END]
    assert built(layout, vita, [said("user", QUESTION)], system="") == ids(vita, none)


def test_vita_reads_an_instruction_and_hears(vita: Any) -> None:
    """inference_sts.py, asr_task: message + "\\n<|audio|>"; README.md's data has the newline in its content."""
    heard = chatml("user", "Convert the speech to text.\n", BEGIN, *names(HEARD), END)
    for content in ("Convert the speech to text.<|audio|>", "Convert the speech to text.\n<|audio|>"):
        found = built("vita_audio_boost", vita, [said("user", content)], system="")
        assert found == ids(vita, [*heard, *VITA_END])


def test_vita_hears_a_voice_in_the_system_message(vita: Any) -> None:
    """inference_sts.py, S2SInference.run_infer with prompt_audio_path: no newline in front, one behind."""
    messages = [said("system", "Your Voice: <|audio|>\n"), said("user", "<|audio|>")]
    voice = chatml("system", "Your Voice: ", BEGIN, *names(HEARD), END, "\n")
    assert built("vita_audio_boost", vita, messages) == ids(vita, [*voice, *chatml("user", *VITA_HEARD), *VITA_END])


@pytest.mark.parametrize("layout", [*VITA_LAYOUTS, "vita_audio_plus_vanilla"])
def test_vita_ends_a_response_as_its_generation_config_does(layout: str) -> None:
    """vita_audio/models/qwen2_mtp_v4_48_3/generation_config.json: eos 151645, 151643; pad 151643."""
    published = {151645: "<|im_end|>", 151643: "<|endoftext|>"}
    found = load_layout(layout)
    assert found.eos == (published[151645], published[151643]) and found.pad == published[151643]


def test_vita_plus_has_its_features_where_the_others_have_tokens() -> None:
    """audio_processor.py, add_audio_input_contiguous: begin, one context token per frame, end; run_infer's newline."""
    chat = load_layout("vita_audio_plus_vanilla").chat
    assert chat.around("<|context_of_audio|>" * 2, "", "user") == f"\n{BEGIN}{'<|context_of_audio|>' * 2}{END}"
    assert chat.system == LUKE


# --- GLM-4-Voice (THUDM/GLM-4-Voice) ------------------------------------------------------------------------

HOW = "Do it step by step. First, think about the instruction and respond in a interleaved manner, with 13 text token"
BY_SPEECH = f"User will provide you with a speech instruction. {HOW} followed by 26 audio tokens. "
BY_TEXT = f"User will provide you with a text instruction. {HOW} followed by 26 audio tokens."
GLM_SPECIALS = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    source = tmp_path_factory.mktemp("glm")
    pieces = [bytes([byte]) for byte in range(256)]
    for word in (b"It", b" is", b" four"):
        pieces += [word[:end] for end in range(2, len(word) + 1)]
    lines = [base64.b64encode(piece) + b" %d" % rank for rank, piece in enumerate(pieces)]
    (source / "tokenizer.model").write_bytes(b"\n".join(lines))
    added = [*GLM_SPECIALS, BEGIN, END, *AUDIO]
    decoder = {str(len(pieces) + n): {"content": name} for n, name in enumerate(added)}
    (source / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    config: dict[str, Any] = {"model_type": "chatglm", "padded_vocab_size": len(pieces) + len(added)}
    config |= {"hidden_size": 64, "ffn_hidden_size": 64, "num_layers": 1, "num_attention_heads": 2}
    config |= {"multi_query_group_num": 1, "kv_channels": 32, "layernorm_epsilon": 1e-5, "seq_length": 64}
    (source / "config.json").write_text(json.dumps(config))
    converted = convert_tokenizer("glm4-voice", source, source / "converted")
    assert len(converted.encode(WORDS)) == 3
    return converted


# build_inputs_with_special_tokens of the model's tokenizer puts these before what model_server.py is sent.
GLM_START = ["[gMASK]", "<sop>"]
GLM_HEARD = ["<|user|>", "\n", BEGIN, *names(HEARD), END]
GLM_END = ["<|assistant|>", "streaming_transcription\n"]
GLM_ANSWER = ["<|assistant|>", f"streaming_transcription\n{WORDS}", *names(ANSWER)]


def test_glm_hears_one_turn(glm: Any) -> None:
    """web_demo.py, inference_fn with input_mode "audio"."""
    wanted = [*GLM_START, "<|system|>", f"\n{BY_SPEECH}", *GLM_HEARD, *GLM_END]
    assert built("glm4_voice", glm, [said("user", "<|audio|>")]) == ids(glm, wanted)


def test_glm_hears_several_turns_and_what_it_said(glm: Any) -> None:
    """web_demo.py, inference_fn: previous_input_tokens + previous_completion_tokens, then the next user turn."""
    messages = [said("user", "<|audio|>"), said("assistant", WORDS + "<|audio|>"), said("user", "<|audio|>")]
    wanted = [*GLM_START, "<|system|>", f"\n{BY_SPEECH}", *GLM_HEARD, *GLM_ANSWER, *GLM_HEARD, *GLM_END]
    assert built("glm4_voice", glm, messages) == ids(glm, wanted)


def test_glm_takes_a_system_prompt_of_the_user_s(glm: Any) -> None:
    """web_demo.py, inference_fn: the fixed text comes only where the input has no <|system|>."""
    wanted = [*GLM_START, "<|system|>", "\nAnswer in one word.", *GLM_HEARD, *GLM_END]
    messages = [said("system", "Answer in one word."), said("user", "<|audio|>")]
    assert built("glm4_voice", glm, messages) == ids(glm, wanted)


def test_glm_reads_a_written_turn(glm: Any) -> None:
    """web_demo.py, inference_fn with input_mode "text": another system text, without a blank at its end."""
    wanted = [*GLM_START, "<|system|>", f"\n{BY_TEXT}", "<|user|>", f"\n{QUESTION}", *GLM_END]
    assert built("glm4_voice", glm, [said("user", QUESTION)]) == ids(glm, wanted)


# --- Step-Audio 2 (stepfun-ai/Step-Audio2) ------------------------------------------------------------------


def step_prompt(messages: Any) -> str:
    template = load_layout("step_audio2_mini").chat.template
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Qwen2Tokenizer().backend_tokenizer)
    options: Any = {"chat_template": template, "add_generation_prompt": True, "tokenize": False}
    return str(tokenizer.apply_chat_template(messages, **options))


def test_step_audio_calls_the_user_human_and_opens_the_spoken_answer() -> None:
    """stepaudio2.py, StepAudio2.apply_chat_template and the text-to-speech conversation at its end."""
    system = load_layout("step_audio2_mini").chat.system or ""
    found = step_prompt([said("system", system), said("user", QUESTION)])
    turns = f"<|BOT|>system\nYou are a helpful assistant.<|EOT|><|BOT|>human\n{QUESTION}<|EOT|>"
    assert found == f"{turns}<|BOT|>assistant\n<tts_start>"


def test_step_audio_gets_its_spoken_answers_back_whole() -> None:
    """stepaudio2.py, the multi-turn conversation: <tts_start>, what was said up to <|EOT|>, which <tts_end> closes."""
    found = step_prompt([said("user", QUESTION), said("assistant", "It<audio_1><audio_6561>"), said("user", "Why?")])
    answer = "<|BOT|>assistant\n<tts_start>It<audio_1><audio_6561><tts_end><|EOT|>"
    assert found.startswith(f"<|BOT|>human\n{QUESTION}<|EOT|>{answer}<|BOT|>human\nWhy?")
    assert "<|BOT|>assistant\nIt<|EOT|>" in step_prompt([said("assistant", "It"), said("user", "Why?")])


def test_step_audio_encloses_a_recording() -> None:
    """stepaudio2.py, StepAudio2.apply_chat_template: <audio_start>, patches, <audio_end>, no newline."""
    around = load_layout("step_audio2_mini").chat.around("<audio_patch><audio_patch>", "", "user")
    assert around == "<audio_start><audio_patch><audio_patch><audio_end>"


def test_step_audio_has_a_padding_token_behind_the_codes() -> None:
    """step_audio_2_tts_ta4_parser.py: <audio_0> is the first, <audio_6561> pads; stepaudio2.py: ids from 151696."""
    layout = load_layout("step_audio2_mini")
    assert layout.speech is not None and (layout.speech.pattern, layout.speech.count) == ("<audio_{}>", 6562)
    vocabulary = {f"<audio_{code}>": 151696 + code for code in range(6562)}
    assert layout.speech.resolve(vocabulary, "test") == range(151696, 158258)
    assert (layout.schedule, layout.eos, layout.begin, layout.end) == (((1, 4),), ("<|EOT|>",), None, None)
