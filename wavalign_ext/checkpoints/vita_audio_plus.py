"""VITA-Audio Plus-Vanilla as a Qwen2 that hears, its encoder in a folder beside it; and back.

The published class ``qwen2_mtp_sensevoice`` is Qwen2 with SenseVoiceSmall (``model.audio_model``) and a projector
(``model.audio_projection``) inside. The language model and the projector are trained here; the encoder is copied.
Source: vita_audio/models/qwen2_mtp_sensevoice_v4_48_3 of VITA-MLLM/VITA-Audio.
"""

import json
from pathlib import Path
from typing import Any

import torch

from wavalign_ext.checkpoints.plan import ConvertError, Plan, Tensors, copy_tokenizer, read_json, require_type
from wavalign_ext.checkpoints.vita_audio import KEPT, SAMPLING, generation_of
from wavalign_ext.models import ARCHITECTURE
from wavalign_ext.models.names import PROJECTION
from wavalign_ext.speech.layout import load_layout

TYPE, LAYOUT = "qwen2_mtp_sensevoice", "vita_audio_plus_vanilla"
ENCODER = "model.audio_model."  # names of the encoder's tensors begin with it
PUBLISHED = f"model.{PROJECTION}."
FOLDER, CONFIG, CMVN = "encoder", "published_config.json", "am.mvn"


def plan(source: Path, config: dict[str, Any]) -> Plan:
    """How a VITA-Audio Plus-Vanilla folder becomes a HearingQwen2ForCausalLM.

    Raises:
        ConvertError: another model, or one with layers for multi-token prediction (Plus-Boost), which are not known.
    """
    from wavalign_ext.models.hearing_qwen2 import HearingQwen2Config

    require_type(config, TYPE, source)
    if config.get("num_nextn_predict_layers", 0):
        raise ConvertError(f"{str(source)!r} has layers for multi-token prediction: give VITA-Audio-Plus-Vanilla")
    facts = load_layout(LAYOUT).encoder
    assert facts is not None
    kept = {key: config[key] for key in KEPT if key in config}
    heard: dict[str, Any] = dict(audio_feature_size=facts.size, audio_most=facts.most, audio_encoder=facts.type)
    made = HearingQwen2Config(
        **kept,
        **heard,
        num_hidden_layers=config["num_hidden_layers"],
        audio_token_id=_token_id(source, facts.placeholder),
        audio_projector="vita",
        dtype=config.get("torch_dtype"),
    )
    made.architectures = [ARCHITECTURE]
    generation = generation_of(source)
    return Plan(
        config=made,
        move=move,
        tokenizer=copy_tokenizer,
        generation={key: value for key, value in generation.items() if key in SAMPLING},
        layout=LAYOUT,
        beside=keep_encoder,
    )


def move(name: str, tensor: torch.Tensor) -> Tensors:
    """The tensor itself, the projector's without ``model.``, none of the encoder's."""
    if name.startswith(ENCODER):
        return []
    return [(name.removeprefix("model."), tensor) if name.startswith(PUBLISHED) else (name, tensor)]


def keep_encoder(source: Path, target: Path) -> None:
    """``encoder/`` of the new folder: the encoder's tensors by their published names, am.mvn, the published config."""
    from safetensors.torch import save_file

    from wavalign_ext.checkpoints.convert import tensors_of

    folder = target / FOLDER
    folder.mkdir()
    tensors = {name: tensor for name, tensor in tensors_of(source) if name.startswith(ENCODER)}
    if not tensors:
        raise ConvertError(f"{str(source)!r} has no tensor {ENCODER}*: download all of its files")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / CONFIG).write_bytes((source / "config.json").read_bytes())
    if (source / CMVN).is_file():
        (folder / CMVN).write_bytes((source / CMVN).read_bytes())


def publish(trained: Path, encoder: Path) -> None:
    """Make the exported folder ``trained`` what VITA-Audio's own code loads: published names and configuration.

    Raises:
        ConvertError: ``encoder`` is not what ``wavalign convert vita-audio-plus`` wrote.
    """
    from safetensors.torch import save_file

    from wavalign_ext.checkpoints.convert import INDEX, tensors_of, weight_files

    if not (encoder / CONFIG).is_file():
        raise ConvertError(f"{str(encoder)!r} has no {CONFIG}: give the folder that wavalign convert wrote")
    config = read_json(encoder / CONFIG)
    where: dict[str, str] = {}
    for file in weight_files(trained):
        named = {
            f"model.{name}" if name.startswith(f"{PROJECTION}.") else name: tensor
            for name, tensor in tensors_of(trained, [file])
        }
        save_file(named, trained / file, metadata={"format": "pt"})
        where |= dict.fromkeys(named, file)
    heard = dict(tensors_of(encoder))
    save_file(heard, trained / "encoder.safetensors", metadata={"format": "pt"})
    where |= dict.fromkeys(heard, "encoder.safetensors")
    (trained / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=2) + "\n")
    (trained / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _token_id(source: Path, name: str) -> int:
    """Raises :class:`ConvertError`: the tokenizer of ``source`` lacks it."""
    for file in ("added_tokens.json", "tokenizer.json"):
        if not (source / file).is_file():
            continue
        node = read_json(source / file)
        found = node if file == "added_tokens.json" else {t["content"]: t["id"] for t in node["added_tokens"]}
        if name in found:
            return int(found[name])
    raise ConvertError(f"the tokenizer in {str(source)!r} has no token {name!r}: give the published folder")
