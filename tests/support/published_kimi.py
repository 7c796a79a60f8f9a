"""Kimi-Audio as it is published, small: a folder of its files, and its forward pass, written from its code.

modeling_moonshot_kimia.py of the published checkpoint (finetune_codes/modeling_kimia.py of its fine-tuning code is the
same class): MoonshotKimiaForCausalLM, names and shapes of its tensors, the order of its sums; attention and rotary
embeddings are Qwen2's there too. kimia_infer/api/kimia.py, ``_generate_loop``: the first output is the audio's.
Tokenizer: ``tiktoken.model`` and ``added_tokens_decoder``, as vllm/tokenizers/kimi_audio.py reads them; ids of
kimia_infer/utils/special_tokens.py as vllm-omni's Kimi-Audio has them.
"""

import base64
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

OFFSET, CODES = 152064, 16384
SPECIAL = {
    "[BOS]": 151643, "[EOS]": 151644, "<|im_msg_end|>": 151645, "<|im_media_begin|>": 151661,
    "<|im_media_end|>": 151663, "<|im_kimia_text_blank|>": 151666, "<|im_kimia_text_eos|>": 151667,
    "<|im_kimia_user_msg_start|>": 151670, "<|im_kimia_assistant_msg_start|>": 151671,
    "<|im_kimia_speech_ct_id|>": 151675, "<|im_kimia_speech_ctd_id|>": 151676,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "architectures": ["MoonshotKimiaForCausalLM"],
    "model_type": "kimi_audio",
    "vocab_size": OFFSET + CODES,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "kimia_mimo_layers": 2,
    "kimia_mimo_transformer_from_layer_index": 1,
    "kimia_token_offset": OFFSET,
    "kimia_adaptor_input_dim": 5120,
    "kimia_media_begin": 151661,
    "kimia_media_end": 151663,
    "use_whisper_feature": True,
    "torch_dtype": "float32",
}


def weights(config: dict[str, Any] = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of the published class by name, spread wide enough for a wrong row to show."""
    torch.manual_seed(seed)
    h, ffn, size = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = h // config["num_attention_heads"] * config["num_key_value_heads"]

    def drawn(*shape: int, width: float = 0.15) -> Tensor:
        return torch.randn(*shape) * width

    found = {"model.embed_tokens.weight": drawn(size, h, width=0.6), "lm_head.weight": drawn(size, h)}
    found |= {"mimo_output.weight": drawn(size, h)}
    for kind, count in (("layers", config["num_hidden_layers"]), ("mimo_layers", config["kimia_mimo_layers"])):
        for number in range(count):
            at = f"model.{kind}.{number}."
            for part, rows in (("q", h), ("k", kv), ("v", kv)):
                found |= {f"{at}self_attn.{part}_proj.weight": drawn(rows, h)}
                found |= {f"{at}self_attn.{part}_proj.bias": drawn(rows)}
            found |= {f"{at}self_attn.o_proj.weight": drawn(h, h), f"{at}mlp.gate_proj.weight": drawn(ffn, h)}
            found |= {f"{at}mlp.up_proj.weight": drawn(ffn, h), f"{at}mlp.down_proj.weight": drawn(h, ffn)}
            found |= {f"{at}input_layernorm.weight": 1 + drawn(h)}
            found |= {f"{at}post_attention_layernorm.weight": 1 + drawn(h)}
    found |= {"model.norm.weight": 1 + drawn(h), "model.mimo_norm.weight": 1 + drawn(h)}
    at = "model.vq_adaptor.layers."
    found |= {f"{at}0.weight": drawn(h, config["kimia_adaptor_input_dim"], width=0.02), f"{at}0.bias": drawn(h)}
    found |= {f"{at}3.weight": drawn(h, h), f"{at}3.bias": drawn(h)}
    return found | {f"{at}4.weight": 1 + drawn(h), f"{at}4.bias": drawn(h)}


def forward(w: dict[str, Tensor], config: dict[str, Any], audio: Tensor, text: Tensor, heard: Tensor) -> Any:
    """(F,) audio and text ids as published, features (codes, 5120) → logits (F, V) of audio, then text."""
    table = w["model.embed_tokens.weight"]
    begin, end = ((audio == config[f"kimia_media_{name}"]).nonzero()[0, 0] for name in ("begin", "end"))
    continuous = torch.zeros(len(audio), dtype=torch.bool)
    continuous[begin + 1 : end] = True
    spread = torch.zeros(len(audio), heard.shape[1])
    spread[begin + 1 : end] = heard
    at = "model.vq_adaptor.layers."
    adapted = functional.silu(functional.linear(spread, w[f"{at}0.weight"], w[f"{at}0.bias"]))
    adapted = functional.linear(adapted, w[f"{at}3.weight"], w[f"{at}3.bias"])
    h, eps = config["hidden_size"], config["rms_norm_eps"]
    adapted = functional.layer_norm(adapted, (h,), w[f"{at}4.weight"], w[f"{at}4.bias"], eps) * continuous[:, None]
    embedded = table[audio]
    embedded = torch.where(continuous[:, None], (embedded + adapted) * math.sqrt(2), embedded) + table[text]
    shared = embedded
    for number in range(config["num_hidden_layers"]):
        embedded = _layer(w, config, f"model.layers.{number}.", embedded)
        if number == config["kimia_mimo_transformer_from_layer_index"]:
            shared = embedded
    for number in range(config["kimia_mimo_layers"]):
        shared = _layer(w, config, f"model.mimo_layers.{number}.", shared)
    spoken = _norm(shared, w["model.mimo_norm.weight"], eps) @ w["mimo_output.weight"].T
    return spoken, _norm(embedded, w["model.norm.weight"], eps) @ w["lm_head.weight"].T


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _layer(w: dict[str, Tensor], config: dict[str, Any], at: str, x: Tensor) -> Tensor:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size, eps = config["hidden_size"] // heads, config["rms_norm_eps"]
    y = _norm(x, w[f"{at}input_layernorm.weight"], eps)
    q, k, v = (
        functional.linear(y, w[f"{at}self_attn.{p}_proj.weight"], w[f"{at}self_attn.{p}_proj.bias"])
        .view(len(x), -1, size)
        .transpose(0, 1)
        for p in "qkv"
    )
    angles = torch.arange(len(x))[:, None] / config["rope_theta"] ** (torch.arange(0, size, 2) / size)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def turned(z: Tensor) -> Tensor:
        return z * cos + torch.cat([-z[..., size // 2 :], z[..., : size // 2]], -1) * sin

    k, v = (z.repeat_interleave(heads // groups, 0) for z in (turned(k), v))
    mixed = functional.scaled_dot_product_attention(turned(q), k, v, is_causal=True)
    x = x + mixed.transpose(0, 1).reshape(len(x), -1) @ w[f"{at}self_attn.o_proj.weight"].T
    y = _norm(x, w[f"{at}post_attention_layernorm.weight"], eps)
    gated = functional.silu(y @ w[f"{at}mlp.gate_proj.weight"].T) * (y @ w[f"{at}mlp.up_proj.weight"].T)
    return x + gated @ w[f"{at}mlp.down_proj.weight"].T


def write_tokenizer_files(folder: Path) -> None:
    """``tiktoken.model`` of the bytes and a few merges, and the control tokens with their published ids."""
    merged = [b"it", b" is", b" f", b" fo", b" fou", b" four", b"It", b"Wh", b"at", b"What"]
    pieces = [*(bytes([byte]) for byte in range(256)), *merged]
    lines = [base64.b64encode(piece) + f" {rank}".encode() for rank, piece in enumerate(pieces)]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    added = {str(number): {"content": name, "special": True} for name, number in SPECIAL.items()}
    settings = {"added_tokens_decoder": added, "tokenizer_class": "TikTokenTokenizer"}
    settings |= {"auto_map": {"AutoTokenizer": ["tokenization_kimia.TikTokenTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_files(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """What a published folder has beside its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer_files(folder)
    config = CONFIG | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config))


def build(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The published folder: config, tokenizer, weights in two files."""
    from safetensors.torch import save_file

    write_files(folder, dtype)
    tensors = {name: tensor.to(dtype) for name, tensor in weights().items()}
    names, where = sorted(tensors), {}
    for number, some in enumerate((names[::2], names[1::2])):
        file = f"model-{number + 1}-of-2.safetensors"
        save_file({name: tensors[name].contiguous() for name in some}, folder / file)
        where |= dict.fromkeys(some, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder
