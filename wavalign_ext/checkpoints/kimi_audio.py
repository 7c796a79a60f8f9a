"""Kimi-Audio as a two-stream model that hears, and back.

The published class has one embedding and two heads over the whole vocabulary: text ids with the control tokens among
them, then codes. Here an id says which stream it is of (:mod:`wavalign_ext.speech.parallel`), so the control tokens of
the audio stream get ids of their own behind the codes, which share the rows of the embedding; each head keeps the rows
of what its stream may say. The rows left out, and the rest of the folder, lie in ``published/``.

Source: kimia_infer of MoonshotAI/Kimi-Audio (ids, streams, offset, delay), modeling_moonshot_kimia.py of the published
checkpoint (its forward names ``mimo_output``'s logits "text", its caller takes them for audio: they are audio).
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wavalign_ext.checkpoints.byte_pieces import special_tokens, write_fast
from wavalign_ext.checkpoints.plan import ConvertError, Plan, Tensors, read_json
from wavalign_ext.checkpoints.vita_audio import KEPT
from wavalign_ext.models.names import PROJECTION
from wavalign_ext.speech.layout import load_layout

CLASS, LAYOUT, FOLDER = "MoonshotKimiaForCausalLM", "kimi_audio", "published"
CODES = 16384  # of GLM-4-Voice's tokenizer
ENDS = {"<|audio_msg_end|>": "<|im_msg_end|>", "<|audio_media_end|>": "<|im_media_end|>"}
# Control tokens of the audio stream and the published token that each is, in the order of their ids behind the codes.
CONTROL = ENDS | {
    "<|audio_blank|>": "<|im_kimia_text_blank|>",
    "<|audio_assistant_msg_start|>": "<|im_kimia_assistant_msg_start|>",
    "<|audio_user_msg_start|>": "<|im_kimia_user_msg_start|>",
    "<|audio_media_begin|>": "<|im_media_begin|>",
    "<|audio_speech_ct|>": "<|im_kimia_speech_ct_id|>",
    "<|audio_speech_ctd|>": "<|im_kimia_speech_ctd_id|>",
}
# How Kimi's tokenizer cuts text before it merges bytes: Qwen's, as vLLM's vllm/tokenizers/kimi_audio.py has it.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RENAMED = {
    "model.mimo_layers.": "model.audio_layers.",
    "model.mimo_norm.": "model.audio_norm.",
    "model.vq_adaptor.": f"{PROJECTION}.",
}
TEXT_HEAD, AUDIO_HEAD = "lm_head.weight", "mimo_output.weight"
NEW_AUDIO_HEAD = "audio_head.weight"
BESIDE = ("config.json", "generation_config.json", "tiktoken.model", "tokenizer_config.json", "special_tokens_map.json")
REST = "rest.safetensors"


def plan(source: Path, config: dict[str, Any]) -> Plan:
    """How a Kimi-Audio folder becomes a HearingTwoStreamForCausalLM.

    Raises:
        ConvertError: another model, or a Kimi-Audio of another vocabulary or without Whisper's features.
    """
    from wavalign_ext.parallel.config import HearingTwoStreamConfig

    if CLASS not in config.get("architectures", ()):
        raise ConvertError(f"{str(source)!r} is a {config.get('architectures')}, not a {CLASS}: choose another kind")
    first = config["kimia_token_offset"]
    for key, wanted in {"vocab_size": first + CODES, "use_whisper_feature": True}.items():
        if config.get(key, wanted) != wanted:
            raise ConvertError(f"config.json: {key}={config[key]!r} is not Kimi-Audio's {wanted!r}: another model")
    layout, tokens = load_layout(LAYOUT), special_tokens(source)
    facts, streams = layout.encoder, layout.streams
    assert facts is not None and streams is not None
    audio = audio_ids(first)
    made = HearingTwoStreamConfig(
        **{key: config[key] for key in KEPT if key in config},
        num_hidden_layers=config["num_hidden_layers"],
        text_vocab=first,
        audio_vocab=CODES + len(CONTROL),
        audio_said=CODES + len(ENDS),
        audio_rows=[_token(tokens, name, source) for name in CONTROL.values()],
        fork_layer=config["kimia_mimo_transformer_from_layer_index"],
        audio_layers=config["kimia_mimo_layers"],
        delay=streams.delay,
        text_blank=_token(tokens, streams.text_blank, source),
        text_end=_token(tokens, streams.text_end, source),
        audio_blank=audio[streams.audio_blank],
        audio_start=audio[streams.audio_start],
        audio_end=[audio[name] for name in ENDS],
        media_begin=audio["<|audio_media_begin|>"],
        audio_feature_size=config.get("kimia_adaptor_input_dim", facts.size),
        audio_most=facts.most,
        audio_encoder=facts.type,
        dtype=config.get("torch_dtype"),
    )
    made.architectures = ["HearingTwoStreamForCausalLM"]
    rows = [first + code for code in range(CODES)] + list(made.audio_rows[: len(ENDS)])
    generation = {"do_sample": True, "eos_token_id": list(made.audio_end)}
    return Plan(made, Mover(first, rows), write_tokenizer, generation, LAYOUT, beside=keep_the_rest)


def audio_ids(first: int) -> dict[str, int]:
    """``{name: id}`` of the audio stream's control tokens, behind the codes that begin at ``first``."""
    return {name: first + CODES + number for number, name in enumerate(CONTROL)}


def _token(tokens: Mapping[str, int], name: str, source: Path) -> int:
    if name not in tokens:
        raise ConvertError(f"the tokenizer in {str(source)!r} has no token {name!r}: give the published folder")
    return tokens[name]


class Mover:
    """Names mapped, each head cut to the rows of its stream: text below ``first``, audio the ids ``rows``."""

    def __init__(self, first: int, rows: list[int]) -> None:
        self.first, self.rows = first, rows

    def __call__(self, name: str, tensor: torch.Tensor) -> Tensors:
        if name == TEXT_HEAD:
            return [(name, tensor[: self.first])]
        if name == AUDIO_HEAD:
            return [(NEW_AUDIO_HEAD, tensor[self.rows])]
        if "rotary_emb" in name:
            return []
        return [(_renamed(name, RENAMED), tensor)]


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def write_tokenizer(source: Path, target: Path) -> None:
    """``tiktoken.model`` as a fast tokenizer, with names for the codes and the audio stream's control tokens."""
    first = read_json(source / "config.json")["kimia_token_offset"]
    tokens = special_tokens(source)
    codes = {f"<|audio_{code}|>": first + code for code in range(CODES)}
    tokens |= codes | audio_ids(first)
    blank = "<|im_kimia_text_blank|>"
    write_fast(
        source / "tiktoken.model", target, tokens, PATTERN, {"eos_token": "<|im_kimia_text_eos|>", "pad_token": blank},
        lambda name: name not in codes,
    )  # fmt: skip


def keep_the_rest(source: Path, target: Path) -> None:
    """``published/``: rows of the heads that the model here leaves out, and the files that the published code reads."""
    from safetensors.torch import save_file

    from wavalign_ext.checkpoints.convert import tensors_of

    folder = target / FOLDER
    folder.mkdir()
    for name in BESIDE:
        if (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())
    for code in source.glob("*.py"):
        (folder / code.name).write_bytes(code.read_bytes())
    heads = {name: tensor for name, tensor in tensors_of(source) if name in (TEXT_HEAD, AUDIO_HEAD)}
    first = read_json(source / "config.json")["kimia_token_offset"]
    rest = {TEXT_HEAD: heads[TEXT_HEAD][first:].clone(), AUDIO_HEAD: heads[AUDIO_HEAD][:first].clone()}
    save_file(rest, folder / REST, metadata={"format": "pt"})


def publish(trained: Path, model: Path) -> None:
    """Make the exported folder ``trained`` what Kimi-Audio's own code loads: names, whole heads, tokenizer, config.

    Rows that were left out are as published, in the dtype of the trained ones.

    Raises:
        ConvertError: ``model`` is not what ``wavalign convert kimi-audio`` wrote.
    """
    from safetensors.torch import load_file, save_file

    from wavalign_ext.checkpoints.convert import INDEX, SINGLE, tensors_of, weight_files

    kept = model / FOLDER
    if not (kept / REST).is_file():
        raise ConvertError(f"{str(kept)!r} has no {REST}: give the folder that wavalign convert kimi-audio wrote")
    config, rest, where = read_json(trained / "config.json"), load_file(kept / REST), {}
    back = {new: old for old, new in RENAMED.items()}
    files = weight_files(trained)
    for file in files:
        named = {}
        for name, tensor in tensors_of(trained, [file]):
            if name == TEXT_HEAD:
                tensor = torch.cat([tensor, rest[TEXT_HEAD].to(tensor.dtype)])
            elif name == NEW_AUDIO_HEAD:
                name, codes = AUDIO_HEAD, tensor[:CODES]
                below = rest[AUDIO_HEAD].to(tensor.dtype)
                below[list(config["audio_rows"][: len(tensor) - CODES])] = tensor[CODES:]
                tensor = torch.cat([below, codes])
            named[_renamed(name, back)] = tensor
        save_file(named, trained / file, metadata={"format": "pt"})
        where |= dict.fromkeys(named, file)
    if files != [SINGLE]:
        (trained / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=2) + "\n")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (trained / name).unlink(missing_ok=True)
    for file in kept.iterdir():
        if file.name != REST:
            shutil.copyfile(file, trained / file.name)
