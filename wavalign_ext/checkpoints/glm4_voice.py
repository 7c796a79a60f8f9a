"""GLM-4-Voice as transformers' own GLM.

Its published class is ChatGLM code for an old transformers. The architecture is ``GlmForCausalLM``: attention over
separate q, k and v (one matrix there), and a gated MLP whose two halves are stored as one matrix in both. Its tokenizer
is a list of byte pieces with ranks, made into a fast one here; special tokens keep their ids.
"""

from pathlib import Path
from typing import Any

import torch

from wavalign_ext.checkpoints.byte_pieces import special_tokens, write_fast
from wavalign_ext.checkpoints.plan import ConvertError, Plan, Tensors, require_type

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


def write_tokenizer(source: Path, target: Path) -> None:
    """``tokenizer.model`` as a fast tokenizer; GLM-4-Voice lists its control and speech tokens in its configuration."""
    settings = {"eos_token": "<|user|>", "pad_token": "<|endoftext|>"}
    tokens = special_tokens(source)
    write_fast(
        source / "tokenizer.model", target, tokens, PATTERN, settings, lambda name: not name.startswith("<|audio_")
    )
