"""Users who are heard through an encoder: what a layout says of it (``encoder``), and feature files.

In a prompt, one placeholder token stands for each feature vector (``user_speech: continuous``), and the model puts the
projected vectors in their place; or codes do, as ever, and it adds a vector to each.
A recording's vectors lie in a file of their own, which rows name in the column :data:`HEARD_FEATURES`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from wavalign_ext.speech.token_names import LayoutError, is_count

HEARD_FEATURES = "heard_features"  # column of a row: feature files in the order of the prompt, relative to audio_root
TENSOR = "features"


@dataclass(frozen=True)
class EncoderFacts:
    """The ``encoder`` node of a layout.

    ``type`` is a registered encoder's; ``size`` the numbers per vector; ``most`` the most vectors of one recording;
    ``placeholder`` the token that stands for a vector, none where it is added to a code. ``sample_rate`` in Hz and
    ``frame_rate`` in vectors per second are for people.
    """

    type: str
    size: int
    most: int
    placeholder: str | None = None
    sample_rate: int = 16000
    frame_rate: float | None = None

    @classmethod
    def from_mapping(cls, node: Any, where: str) -> EncoderFacts:
        """Build from a YAML node. Raises :class:`LayoutError`: a key is missing, not known, or malformed."""
        names = [item.name for item in fields(cls)]
        if not isinstance(node, Mapping) or not {"type", "size", "most"} <= node.keys():
            raise LayoutError(f"{where}: encoder={node!r} is malformed: give type, size and most")
        if "trainable" in node:
            raise LayoutError(f"{where}, encoder: trainable is not supported: the projector learns; take it out")
        if unknown := [key for key in node if key not in names]:
            raise LayoutError(f"{where}, encoder: key {unknown[0]!r} is not known: its keys are {', '.join(names)}")
        facts = cls(**node)
        for name in ("size", "most"):
            if not is_count(getattr(facts, name), 1):
                raise LayoutError(f"{where}, encoder: {name}={getattr(facts, name)!r}: give a whole number above 0")
        for name in ("type", "placeholder"):
            value = getattr(facts, name)
            if not (isinstance(value, str) and value) and (name, value) != ("placeholder", None):
                raise LayoutError(f"{where}, encoder: {name}={getattr(facts, name)!r} is no name: write a string")
        if "{" in (facts.placeholder or ""):
            raise LayoutError(f"{where}, encoder: placeholder={facts.placeholder!r}: one token, without braces")
        return facts


@dataclass(frozen=True)
class FeatureFile:
    """What a feature file says of itself; ``encoder`` is its type, ``fingerprint`` as :class:`SpeechEncoder` has it."""

    frames: int
    size: int
    encoder: str
    fingerprint: str


def save_features(path: Path, features: torch.Tensor, encoder: str, fingerprint: str) -> None:
    """Write (frames, size) to ``path``, whole or not at all, whoever else writes the same."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file({TENSOR: features.contiguous()}, part, metadata={"encoder": encoder, "fingerprint": fingerprint})
    os.replace(part, path)


def read_header(path: Path) -> FeatureFile:
    """What is in a file, without its tensor. Raises ValueError: no such file, or it holds something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            frames, size = file.get_slice(TENSOR).get_shape()
            return FeatureFile(frames, size, told["encoder"], told["fingerprint"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"features {str(path)!r} cannot be read ({why}): run wavalign prepare again") from error


def load_features(names: Sequence[str] | None, root: str | None) -> list[torch.Tensor]:
    """The vectors (frames, size) of each file of a row, in order; none for a row that hears nothing.

    Raises OSError or safetensors' error where a file has gone since the run began.
    """
    from safetensors.torch import load_file

    return [load_file(Path(root or ".") / name)[TENSOR] for name in names or ()]


def multi_modal_inputs(features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The row's column for verl's engine, which hands it to the model's ``forward``: all vectors, one after another."""
    return {"audio_features": torch.cat(list(features))} if features else {}
