"""GLM-4-Voice as transformers' own GLM.

Its published class is ChatGLM code for an old transformers. The architecture is ``GlmForCausalLM``: attention over
separate q, k and v (one matrix there), and a gated MLP whose two halves are stored as one matrix in both. Its tokenizer
is a list of byte pieces with ranks, made into a fast one here; special tokens keep their ids.
"""

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from wavalign_ext.checkpoints.plan import ConvertError, Plan, Tensors, read_json, require_type

LAYOUT = "glm4_voice"
# How GLM-4's tokenizer cuts text before it merges bytes.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RENAMED = {
    "transformer.embedding.word_embeddings.": "model.embed_tokens.",
    "transformer.encoder.final_layernorm.": "model.norm.",
    "transformer.output_layer.": "lm_head.",
}
IN_LAYER = {
    "self_attention.dense.": "self_attn.o_proj.",
    "mlp.dense_h_to_4h.": "mlp.gate_up_proj.",
    "mlp.dense_4h_to_h.": "mlp.down_proj.",
    "input_layernorm.": "input_layernorm.",
    "post_attention_layernorm.": "post_attention_layernorm.",
}
LAYER = "transformer.encoder.layers."


def plan(source: Path, config: dict[str, Any]) -> Plan:
    """How a GLM-4-Voice folder becomes a GlmForCausalLM.

    Raises:
        ConvertError: another model, or a ChatGLM with parts that GlmForCausalLM does not have.
    """
    from transformers import GlmConfig

    require_type(config, "chatglm", source)
    expected = {"rmsnorm": True, "post_layer_norm": True, "multi_query_attention": True, "original_rope": True}
    expected |= {"add_bias_linear": False, "apply_residual_connection_post_layernorm": False}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ConvertError(f"config.json: {key}={config[key]!r} is not GLM-4's {value!r}: this is another ChatGLM")
    tokens = special_tokens(source)
    eos = [tokens[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>") if name in tokens]
    plain = GlmConfig(
        vocab_size=config["padded_vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["ffn_hidden_size"],
        num_hidden_layers=config["num_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["multi_query_group_num"],
        head_dim=config["kv_channels"],
        attention_bias=config.get("add_qkv_bias", False),
        rms_norm_eps=config["layernorm_epsilon"],
        max_position_embeddings=config["seq_length"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * config.get("rope_ratio", 1),
            "partial_rotary_factor": 0.5,
        },
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        pad_token_id=tokens.get("<|endoftext|>"),
        eos_token_id=eos,
        dtype=config.get("torch_dtype"),
    )
    plain.architectures = ["GlmForCausalLM"]
    heads = (config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"])
    generation = {"do_sample": True, "eos_token_id": eos, "pad_token_id": tokens.get("<|endoftext|>")}
    return Plan(plain, _Mover(*heads), write_tokenizer, generation, LAYOUT)


class _Mover:
    def __init__(self, heads: int, kv_heads: int, head_size: int) -> None:
        self.split = [heads * head_size, kv_heads * head_size, kv_heads * head_size]

    def __call__(self, name: str, tensor: torch.Tensor) -> Tensors:
        """One tensor renamed, or the fused q, k, v (heads · size + 2 · KV heads · size, H) as three."""
        if "rotary_pos_emb" in name:
            return []
        for old, new in RENAMED.items():
            if name.startswith(old):
                return [(new + name.removeprefix(old), tensor)]
        if not name.startswith(LAYER):
            return [(name, tensor)]  # unknown: refused by its name
        layer, _, inside = name.removeprefix(LAYER).partition(".")
        at = f"model.layers.{layer}."
        if inside.startswith("self_attention.query_key_value."):
            kind = inside.rpartition(".")[2]
            parts = zip("qkv", tensor.split(self.split), strict=True)
            return [(f"{at}self_attn.{part}_proj.{kind}", rows) for part, rows in parts]
        for old, new in IN_LAYER.items():
            if inside.startswith(old):
                return [(at + new + inside.removeprefix(old), tensor)]
        return [(name, tensor)]


def special_tokens(source: Path) -> dict[str, int]:
    """``{name: id}`` of ``added_tokens_decoder``, where GLM-4-Voice lists its control and speech tokens."""
    settings = read_json(source / "tokenizer_config.json")
    added = settings.get("added_tokens_decoder") or {}
    if not added:
        raise ConvertError(f"{str(source)!r}: tokenizer_config.json has no added_tokens_decoder: use the published one")
    return {token["content"]: int(token_id) for token_id, token in added.items()}


def write_tokenizer(source: Path, target: Path) -> None:
    """``tokenizer.model`` (a line per piece: base64 and rank) as a byte-level BPE with the same ids.

    Raises:
        ConvertError: no such file, or lines of another form.
    """
    path = source / "tokenizer.model"
    try:
        lines = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(piece, validate=True): int(rank) for piece, rank in lines}
    except (OSError, ValueError) as error:
        raise ConvertError(f"{str(path)!r} is no list of base64 pieces with ranks: {error}") from error
    tokens = special_tokens(source)
    names = {_printable(piece): rank for piece, rank in ranks.items()} | tokens
    taken = set(names.values())
    # Ids without a name, between the control and the speech tokens: a fast tokenizer wants its ids without gaps.
    names |= {f"<|unused_{free}|>": free for free in range(max(taken)) if free not in taken}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cut = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    fast = {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": name, **flags, "special": not name.startswith("<|audio_")}
            for name, token_id in sorted(tokens.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": names, "merges": _merges(ranks), "ignore_merges": True},
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|user|>", "pad_token": "<|endoftext|>"}
    (target / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _merges(ranks: dict[bytes, int]) -> list[list[str]]:
    """Each way to make a piece of two pieces, by the rank of the result: what merging by rank comes to."""
    pairs = []
    for piece, rank in ranks.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in ranks and right in ranks:
                pairs.append((rank, ranks[left], ranks[right], [_printable(left), _printable(right)]))
    return [pair for *_, pair in sorted(pairs, key=lambda item: item[:3])]


@cache
def _byte_names() -> list[str]:
    """The character that stands for each byte in byte-level BPE: itself where printable, else one from 256 on."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _printable(piece: bytes) -> str:
    return "".join(map(_byte_names().__getitem__, piece))
