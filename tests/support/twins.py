"""Geometry twins: small random models with the real vocabulary, special tokens, template and schedule of a layout.

What breaks on a real model because of an id, a template or a size breaks on its twin, in seconds and without a hub:
``build_twin("vita_audio_balance", folder)``. :func:`write_rows` makes data that its recipe can train on.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    GlmConfig,
    GlmForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from wavalign_ext import models, parallel
from wavalign_ext.checkpoints.kimi_audio import CONTROL
from wavalign_ext.models.hearing_qwen2 import HearingQwen2Config, HearingQwen2ForCausalLM
from wavalign_ext.speech.layout import Layout, ResolvedLayout, load_layout
from wavalign_ext.speech.turn_grammar import BEGIN, CODE, END, EOS, NEVER, TEXT, kinds_of_ids

CODES = 16384
TEMPERATURE = 0.7  # of the recipes' rollouts
# The order in which VITA-Audio's update_tokenizer_for_glm4voice adds its tokens, after Qwen2.5's 151665.
VITA_PARTS = ["image", "video", "patch", "audio", "quad", "ref", "box"]
VITA_ADDED = [
    f"<|{place}_of_{part}|>"
    for part in VITA_PARTS
    for place in (("begin", "end", "context") if part in VITA_PARTS[:3] else ("begin", "end"))
] + ["<|image|>", "<|video|>", "<|audio|>"]
GLM_NAMES = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>"]
GLM_NAMES += ["<|assistant|>", "<|observation|>"]
GLM_NAMES += [f"<|{place}_of_{part}|>" for part in ("image", "video", "audio") for place in ("begin", "end")]


@dataclass(frozen=True)
class Twin:
    """Ids of one family: named tokens by first id, where the speech tokens begin, and how many rows the model has.

    ``pattern`` and ``codes`` are of the speech tokens; ``overrides`` are what a job needs beside the layout.
    """

    named: dict[int, list[str]]
    first_audio: int
    vocab_size: int
    eos: str
    family: str = "qwen2"
    pattern: str = "<|audio_{}|>"
    codes: int = CODES
    pad: str = "<|endoftext|>"
    overrides: tuple[str, ...] = ()


VITA = Twin(
    named={151643: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 151665: VITA_ADDED},
    first_audio=151685,  # speech_token_offset of its configuration
    vocab_size=168072,
    eos="<|im_end|>",
)
GLM = Twin(
    named={151329: GLM_NAMES},
    first_audio=152353,  # second-hand, as is the vocabulary
    vocab_size=168960,
    eos="<|user|>",
    family="glm",
)
# update_tokenizer_for_sensevoice_glm4voice of VITA-Audio adds the same in the same order, and <|context_of_audio|>.
PLUS_ADDED = [*VITA_ADDED[:11], "<|context_of_audio|>", *VITA_ADDED[11:]]
PLUS = replace(VITA, named={**VITA.named, 151665: PLUS_ADDED}, first_audio=151686)
# Second-hand but for 151696: the names, their other ids and the vocabulary. The published model hears through an
# encoder; this twin hears speech tokens, so that the rest of its layout can be run with a plain Qwen2.
STEP = Twin(
    named={151643: ["<|endoftext|>", "<|EOT|>", "<|BOT|>", "<tts_start>", "<tts_end>", "<audio_start>", "<audio_end>"]},
    first_audio=151696,
    vocab_size=158720,
    eos="<|EOT|>",
    pattern="<audio_{}>",
    codes=6562,
    overrides=(
        "wavalign.layout.user_speech={first_id: 151696, count: 6562}",
        "wavalign.layout.encoder=null",
        "+wavalign.codec.codes=6562",
    ),
)
KIMI = Twin(
    named={
        151643: ["[BOS]", "[EOS]", "<|im_msg_end|>"],
        151661: ["<|im_media_begin|>"],
        151663: ["<|im_media_end|>"],
        151666: ["<|im_kimia_text_blank|>", "<|im_kimia_text_eos|>"],
        151670: ["<|im_kimia_user_msg_start|>", "<|im_kimia_assistant_msg_start|>"],
        151675: ["<|im_kimia_speech_ct_id|>", "<|im_kimia_speech_ctd_id|>"],
        168448: list(CONTROL),
    },
    first_audio=152064,
    vocab_size=168456,
    eos="<|im_kimia_text_eos|>",
    pad="<|im_kimia_text_blank|>",
    family="kimi",
)
TWINS = {
    "kimi_audio": KIMI,
    "vita_audio_balance": VITA,
    "vita_audio_boost": VITA,
    "vita_audio_plus_vanilla": PLUS,
    "glm4_voice": GLM,
    "step_audio2_mini": STEP,
}


def build_twin(name: str, folder: Path, layers: int = 2, hidden: int = 64, seed: int = 0) -> Path:
    """Write tokenizer, configuration and random fp32 weights of the twin of layout ``name``; returns ``folder``.

    ``hidden`` of 64 has heads of 32, the smallest that vLLM's CPU attention takes.
    """
    import torch

    models.register()
    parallel.register()
    twin = TWINS[name]
    tokenizer = build_tokenizer(name, folder)
    layout = twin_layout(name).resolve(tokenizer, twin.vocab_size)
    torch.manual_seed(seed)
    sizes: dict[str, Any] = dict(
        vocab_size=twin.vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=list(layout.eos_ids),
        pad_token_id=tokenizer.convert_tokens_to_ids(twin.pad),
        bos_token_id=None,
    )
    if name == "vita_audio_plus_vanilla":
        heard: Any = dict(audio_token_id=layout.user_speech_start, audio_feature_size=512, audio_most=504)
        model: Any = HearingQwen2ForCausalLM(HearingQwen2Config(**sizes, **heard))
    elif twin.family == "kimi":
        model = _two_streams(layout, tokenizer, layers, sizes)
    elif twin.family == "glm":
        model = GlmForCausalLM(GlmConfig(**sizes, head_dim=hidden // 2))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    (make_it_speak if twin.family != "kimi" else make_both_speak)(model, layout)
    model.save_pretrained(folder)
    return folder


def twin_layout(name: str) -> Layout:
    """The layout as published, but that a model which hears through an encoder hears its speech tokens."""
    layout = load_layout(name)
    return replace(layout, user_speech=None, encoder=None) if name == "step_audio2_mini" else layout


def write_rows(name: str, path: Path, rows: int = 8, heard: int = 12, codes: int = 40) -> Path:
    """A parquet file of rows for the twin: a heard question, a text and a speech target. Nothing to listen to."""
    import pandas
    import torch

    from wavalign_ext.speech.heard import save_features

    twin, chat = TWINS[name], load_layout(name).chat
    system = [{"role": "system", "content": text}] if (text := chat.system_message(user_speaks=True)) else []
    table = []
    for row in range(rows):
        question = "".join(twin.pattern.format((37 * row + 11 * n) % twin.codes) for n in range(heard))
        vectors = []
        if (facts := twin_layout(name).encoder) is not None:
            vectors = [f"features/{row}.safetensors"]
            beside = "".join(twin.pattern.format((37 * row + 11 * n) % twin.codes) for n in range(heard + row))
            question = facts.placeholder * (heard + row) if facts.placeholder else beside
            noise = torch.randn(heard + row, facts.size, generator=torch.Generator().manual_seed(row))
            save_features(path.parent / vectors[0], noise.bfloat16(), facts.type, "twin")
        target = [(101 * row + 7 * n) % twin.codes for n in range(codes)]
        table.append(
            {
                "data_source": "wavalign/twin",
                "prompt": [*system, {"role": "user", "content": chat.around(question, "", "user")}],
                "reward_model": {"style": "rule", "ground_truth": "it is four"},
                "target_text": "it is four",
                "target_speech": target,
                "extra_info": {"index": row, "question": "two plus two"},
                **({"heard_features": vectors} if vectors else {}),
            }
        )
    pandas.DataFrame(table).to_parquet(path)
    return path


def make_it_speak(model: Any, layout: ResolvedLayout) -> None:
    """Let a random model say letters, codes, boundaries and ends, of which its vocabulary has 256, 16384, 2 and 1.

    The first number of every embedding outweighs the others, so that after the last norm it is √hidden; the head's
    first column is then a bias, by the kind of the token.
    """
    import torch

    share = {TEXT: 4.0, CODE: 4.0, BEGIN: 4.0, END: 1.0, EOS: 0.3}
    with torch.no_grad():
        head, embedding = model.lm_head.weight, model.get_input_embeddings().weight
        embedding[:, 0] = 1.0
        kinds = torch.tensor(kinds_of_ids(layout, len(head)))
        kinds[256:][kinds[256:] == TEXT] = NEVER  # names and fillers
        bias = torch.full((len(head),), -20.0)
        for kind, weight in share.items():
            bias[kinds == kind] = math.log(weight / max(int((kinds == kind).sum()), 1))
        head[:, 0] = TEMPERATURE * bias / head.shape[1] ** 0.5


def _two_streams(layout: Any, tokenizer: Any, layers: int, sizes: dict[str, Any]) -> Any:
    """Kimi-Audio's shape, ids and features."""
    from wavalign_ext.parallel.config import HearingTwoStreamConfig
    from wavalign_ext.parallel.model import HearingTwoStreamForCausalLM

    facts, first = layout.layout.encoder, layout.speech_start
    heard = dict(audio_feature_size=facts.size, audio_most=facts.most, audio_encoder=facts.type)
    config = HearingTwoStreamConfig(
        **{key: value for key, value in sizes.items() if key not in ("vocab_size", "eos_token_id")},
        text_vocab=first,
        audio_vocab=CODES + len(CONTROL),
        audio_said=CODES + len(layout.eos_ids),
        audio_rows=[tokenizer.convert_tokens_to_ids(name) for name in CONTROL.values()],
        fork_layer=layers - 2 if layers > 1 else 0,
        delay=layout.delay,
        text_blank=layout.text_blank,
        text_end=layout.text_end,
        audio_blank=layout.audio_blank,
        audio_start=layout.audio_start,
        audio_end=list(layout.eos_ids),
        media_begin=layout.around_user[0],
        **heard,
    )
    return HearingTwoStreamForCausalLM(config)


def make_both_speak(model: Any, layout: Any) -> None:
    """:func:`make_it_speak` for two heads: letters and their end; codes and the two ends."""
    import torch

    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 1.0
        for head, said, ends in (
            (model.lm_head.weight, range(256), [layout.text_end]),
            (model.audio_head.weight, range(CODES), [i - layout.speech_start for i in layout.eos_ids]),
        ):
            bias = torch.full((len(head),), -20.0)
            bias[list(said)], bias[ends] = math.log(1 / len(said)), math.log(0.1)
            head[:, 0] = TEMPERATURE * bias / head.shape[1] ** 0.5


def build_tokenizer(name: str, folder: Path) -> PreTrainedTokenizerFast:
    """Bytes as text, every special token at its real id, fillers in between; no merges. The layout's chat template."""
    twin, template = TWINS[name], load_layout(name).chat.template
    assert template is not None
    names = {first + n: name for first, many in twin.named.items() for n, name in enumerate(many)}
    names |= {twin.first_audio + code: twin.pattern.format(code) for code in range(twin.codes)}
    vocabulary = {name: token_id for token_id, name in enumerate(_byte_alphabet())}
    vocabulary |= {
        names.get(token_id, f"<unused_{token_id}>"): token_id for token_id in range(len(vocabulary), max(names) + 1)
    }
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    content = {
        "version": "1.0",
        "added_tokens": [{"id": token_id, "content": name, **flags} for token_id, name in sorted(names.items())],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer" if twin.family == "qwen2" else "PreTrainedTokenizerFast",
        "eos_token": twin.eos,
        "pad_token": twin.pad,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
    return AutoTokenizer.from_pretrained(folder)


def _byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for bytes in byte-level BPE, in the order of the trainer."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())
