"""Projectors: from an encoder's vectors to the language model's embeddings, with the weight names of each model."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class VitaProjector(nn.Module):
    """VITA-MLLM/VITA-Audio, qwen2_mtp_sensevoice_v4_48_3/resampler_projector.py, ResamplerProjector."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.pre_proj_layernorm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, hidden, bias=False), nn.GELU(), nn.Linear(hidden, hidden, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(self.pre_proj_layernorm(features))


class StepProjector(nn.Module):
    """The linears behind Step-Audio 2's convolution: 2048 between them, by the shapes of its published weights."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(size, 2048), nn.Linear(2048, hidden)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear2(functional.relu(self.linear1(features)))


class LinearProjector(nn.Module):
    """transformers' Qwen2AudioMultiModalProjector."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, hidden)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


class KimiProjector(nn.Module):
    """MoonshotAI/Kimi-Audio, modeling_moonshot_kimia.py, VQAdaptor; beside the codes, not in a placeholder's place."""

    def __init__(self, size: int, hidden: int, eps: float) -> None:
        super().__init__()
        first, second = nn.Linear(size, hidden), nn.Linear(hidden, hidden)
        self.layers = nn.Sequential(first, nn.SiLU(), nn.Identity(), second, nn.LayerNorm(hidden, eps=eps))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


PROJECTORS: dict[str, Callable[[int, int], nn.Module]] = {
    "vita": VitaProjector,
    "step": StepProjector,
    "linear": LinearProjector,
}


def make_projector(kind: str, size: int, hidden: int) -> nn.Module:
    """(…, size) to (…, hidden). Raises ValueError for an unknown kind, naming the known ones."""
    if kind not in PROJECTORS:
        raise ValueError(f"audio_projector={kind!r} is not known: one of {', '.join(PROJECTORS)}")
    return PROJECTORS[kind](size, hidden)


def dtype_of(projector: nn.Module) -> torch.dtype:
    """What its weights are in; features are cast to it, alike in both engines."""
    return next(projector.parameters()).dtype
