"""What a conversion is made of: a plan for one kind of model, and what the kinds share."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
Tensors = Iterable[tuple[str, torch.Tensor]]


class ConvertError(ValueError):
    """SRC or DST is not what a conversion needs. The message names what was found and the remedy."""


@dataclass(frozen=True)
class Plan:
    """What becomes of one source folder.

    ``config`` is of transformers and says the class; ``move`` gives the tensors that one tensor of SRC becomes (none
    to drop it); ``tokenizer`` writes the tokenizer from SRC to DST; ``generation`` are the settings for inference;
    ``beside`` writes from SRC to DST what is no part of the class.
    """

    config: Any
    move: Callable[[str, torch.Tensor], Tensors]
    tokenizer: Callable[[Path, Path], None]
    generation: dict[str, Any]
    layout: str
    beside: Callable[[Path, Path], None] | None = None


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files as they are, less its chat template and a pointer to code of the source's own."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())
    path = target / "tokenizer_config.json"
    if path.is_file():
        settings = read_json(path)
        for key in ("auto_map", "chat_template"):
            settings.pop(key, None)
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises :class:`ConvertError`: no such file, or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{str(path)!r} cannot be read: {error}; give a Hugging Face model folder") from error


def require_type(config: dict[str, Any], allowed: str, where: Path) -> None:
    """Raises :class:`ConvertError`: the configuration is another model's."""
    if config.get("model_type") != allowed:
        found = config.get("model_type")
        raise ConvertError(f"{str(where)!r} is a model of type {found!r}, not {allowed!r}: choose another kind")
