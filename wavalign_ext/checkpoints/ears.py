"""Published models that hear, as a Qwen2 that hears with the encoder in a folder beside it; and back, bit for bit.

The published classes hold encoder, projector and language model in one. The last two are trained here; the encoder's
tensors are copied, and written into the exported model again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wavalign_ext.checkpoints.plan import ConvertError, Plan, Tensors, copy_tokenizer, read_json
from wavalign_ext.checkpoints.vita_audio import KEPT, SAMPLING, generation_of
from wavalign_ext.models import ARCHITECTURE
from wavalign_ext.models.names import PROJECTION
from wavalign_ext.speech.layout import load_layout

FOLDER, CMVN = "encoder", "am.mvn"


@dataclass(frozen=True)
class Ears:
    """How one published class names its parts.

    ``encoder``: what the encoder's tensors begin with; ``projection``: what stands for ``audio_projection.``;
    ``language``: what the names of the language model's tensors begin with;
    ``projector``: ours, of :mod:`wavalign_ext.models.projectors`; ``config``: the published configuration's name in the
    encoder's folder.
    """

    model_type: str
    layout: str
    projector: str
    projection: str
    encoder: tuple[str, ...]
    config: str
    language: str = ""


PLUS = Ears(
    "qwen2_mtp_sensevoice",
    "vita_audio_plus_vanilla",
    "vita",
    f"model.{PROJECTION}.",
    ("model.audio_model.",),
    "published_config.json",
)
# Its encoder reads the configuration by this name.
STEP = Ears("step_audio_2", "step_audio2_mini", "step", "adapter.", ("encoder.", "adapter.conv."), "config.json")
QWEN = Ears(
    "qwen2_audio",
    "qwen2_audio",
    "linear",
    "multi_modal_projector.",
    ("audio_tower.",),
    "config.json",
    "language_model.",
)


def make_plan(ears: Ears, source: Path, text: dict[str, Any]) -> Plan:
    """The plan for a folder whose language model has the configuration ``text``.

    Raises:
        ConvertError: the tokenizer lacks the placeholder.
    """
    from wavalign_ext.models.hearing_qwen2 import HearingQwen2Config

    facts = load_layout(ears.layout).encoder
    assert facts is not None and facts.placeholder is not None
    kept = {key: text[key] for key in KEPT if key in text}
    heard: dict[str, Any] = dict(audio_feature_size=facts.size, audio_most=facts.most, audio_encoder=facts.type)
    made = HearingQwen2Config(
        **kept,
        **heard,
        num_hidden_layers=text["num_hidden_layers"],
        audio_token_id=_token_id(source, facts.placeholder),
        audio_projector=ears.projector,
        dtype=text.get("torch_dtype"),
    )
    made.architectures = [ARCHITECTURE]

    def move(name: str, tensor: torch.Tensor) -> Tensors:
        """The tensor itself, the projector's by our name, none of the encoder's."""
        if name.startswith(ears.encoder):
            return []
        if name.startswith(ears.projection):
            return [(f"{PROJECTION}.{name.removeprefix(ears.projection)}", tensor)]
        return [(name.removeprefix(ears.language), tensor)]

    return Plan(
        config=made,
        move=move,
        tokenizer=copy_tokenizer,
        generation={key: value for key, value in generation_of(source).items() if key in SAMPLING},
        layout=ears.layout,
        beside=lambda source, target: _keep_encoder(ears, source, target),
    )


def _keep_encoder(ears: Ears, source: Path, target: Path) -> None:
    """``encoder/`` of the new folder: the encoder's tensors by their published names, am.mvn, the published config."""
    from safetensors.torch import save_file

    from wavalign_ext.checkpoints.convert import tensors_of

    folder = target / FOLDER
    folder.mkdir()
    tensors = {name: tensor for name, tensor in tensors_of(source) if name.startswith(ears.encoder)}
    if not tensors:
        raise ConvertError(f"{str(source)!r} has no tensor {ears.encoder[0]}*: download all of its files")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / ears.config).write_bytes((source / "config.json").read_bytes())
    if (source / CMVN).is_file():
        (folder / CMVN).write_bytes((source / CMVN).read_bytes())


def publish(trained: Path, encoder: Path) -> None:
    """Make the exported folder ``trained`` what the publisher's own code loads: published names and configuration.

    Raises:
        ConvertError: ``encoder`` is not what ``wavalign convert`` wrote for a model that hears.
    """
    from safetensors.torch import save_file

    from wavalign_ext.checkpoints.convert import INDEX, tensors_of, weight_files

    ears = next((one for one in (PLUS, STEP, QWEN) if _type_in(encoder / one.config) == one.model_type), None)
    if ears is None:
        names = f"{PLUS.config} or {STEP.config} of a model that hears"
        raise ConvertError(f"{str(encoder)!r} has no {names}: give the folder that wavalign convert wrote")
    config = read_json(encoder / ears.config)
    where: dict[str, str] = {}
    for file in weight_files(trained):
        named = {_published(name, ears): tensor for name, tensor in tensors_of(trained, [file])}
        save_file(named, trained / file, metadata={"format": "pt"})
        where |= dict.fromkeys(named, file)
    heard = dict(tensors_of(encoder))
    save_file(heard, trained / "encoder.safetensors", metadata={"format": "pt"})
    where |= dict.fromkeys(heard, "encoder.safetensors")
    (trained / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=2) + "\n")
    (trained / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _type_in(config: Path) -> str | None:
    return read_json(config).get("model_type") if config.is_file() else None


def _published(name: str, ears: Ears) -> str:
    ours = f"{PROJECTION}."
    return f"{ears.projection}{name.removeprefix(ours)}" if name.startswith(ours) else f"{ears.language}{name}"


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
