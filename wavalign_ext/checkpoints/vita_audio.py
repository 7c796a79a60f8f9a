"""VITA-Audio Balance and Boost as plain Qwen2.

The class ``qwen2_mtp`` is Qwen2 whose last ``num_nextn_predict_layers`` decoder layers belong to multi-token prediction
(MTP). The language model is the layers before them, with the same norm and head; MTP only drafts speech tokens faster.
"""

from pathlib import Path
from typing import Any

import torch

from wavalign_ext.checkpoints.plan import ConvertError, Plan, Tensors, copy_tokenizer, read_json, require_type

# Turns as generation_config.json has them: text and audio counts in one list.
LAYOUTS = {(1, 4, 3, 8, 4, 10): "vita_audio_balance", (1, 10, 4, 10): "vita_audio_boost"}
MTP_PARTS = ("mtp_projs.", "mtp_embed_norms.", "mtp_hidden_norms.")
KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "eos_token_id", "pad_token_id")


def plan(source: Path, config: dict[str, Any]) -> Plan:
    """How a VITA-Audio folder becomes a Qwen2ForCausalLM.

    Raises:
        ConvertError: the Plus models, which hear through an encoder, another model, or MTP counts that do not fit.
    """
    from transformers import Qwen2Config

    if config.get("model_type") == "qwen2_mtp_sensevoice":
        raise ConvertError("VITA-Audio Plus hears through a SenseVoice encoder: its kind is vita-audio-plus")
    require_type(config, "qwen2_mtp", source)
    layers, drafting = config["num_hidden_layers"], config.get("num_nextn_predict_layers", 1)
    if not 0 <= drafting < layers:
        raise ConvertError(f"config.json: {layers} layers of which {drafting} are for MTP: at least one must be left")
    kept = {key: config[key] for key in KEPT if key in config}
    plain = Qwen2Config(**kept, num_hidden_layers=layers - drafting, dtype=config.get("torch_dtype"))
    plain.architectures = ["Qwen2ForCausalLM"]
    generation = generation_of(source)
    turns = tuple(generation.pop("mtp_inference_mode", ()))
    return Plan(
        config=plain,
        move=_Mover(layers - drafting),
        tokenizer=copy_tokenizer,
        generation={key: value for key, value in generation.items() if key in SAMPLING},
        layout=LAYOUTS.get(turns, "vita_audio_balance"),
    )


class _Mover:
    def __init__(self, layers: int) -> None:
        self.layers = layers

    def __call__(self, name: str, tensor: torch.Tensor) -> Tensors:
        """The tensor itself, unless it belongs to multi-token prediction."""
        if name.startswith(MTP_PARTS):
            return []
        if name.startswith("model.layers.") and int(name.split(".")[2]) >= self.layers:
            return []
        return [(name, tensor)]


def generation_of(source: Path) -> dict[str, Any]:
    """The folder's settings for inference; none where there is no such file."""
    path = source / "generation_config.json"
    return read_json(path) if path.is_file() else {}
