"""SenseVoiceSmall's network: self-attention blocks whose values also pass a depthwise convolution (SAN-M).

Paper: arXiv 2006.01713. Names and numerics follow VITA-MLLM/VITA-Audio,
vita_audio/models/qwen2_mtp_sensevoice_v4_48_3/modeling_sensevoice.py: layer norms in float32 with epsilon 1e-5, all
else in the weights' dtype, position encodings included (in bfloat16, positions beyond 256 are rounded). For one
recording at a time, so nothing is masked.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

HEADS = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of a network: ``blocks`` first, with the one that takes the input, then ``last_blocks``."""

    input: int
    size: int
    feed_forward: int
    kernel: int
    blocks: int
    last_blocks: int


class Norm(nn.LayerNorm):
    """Computed in float32 whatever the dtype."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).type_as(input)


class Attention(nn.Module):
    """(B, T, input) to (B, T, size): attention, plus the values and their convolution over time."""

    def __init__(self, input: int, shape: Shape) -> None:
        super().__init__()
        self.linear_q_k_v = nn.Linear(input, 3 * shape.size)
        self.linear_out = nn.Linear(shape.size, shape.size)
        self.fsmn_block = nn.Conv1d(
            shape.size, shape.size, shape.kernel, padding=(shape.kernel - 1) // 2, groups=shape.size, bias=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.linear_q_k_v(x).chunk(3, -1)
        memory = self.fsmn_block(v.mT).mT + v
        # Not scaled_dot_product_attention: the published code rounds scores and weights on the way.
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))  # (B, heads, T, size/heads)
        weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, -1)
        return self.linear_out((weights @ v).transpose(1, 2).flatten(2)) + memory


class FeedForward(nn.Module):
    """Two linears around a ReLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w_1 = nn.Linear(shape.size, shape.feed_forward)
        self.w_2 = nn.Linear(shape.feed_forward, shape.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w_2(self.w_1(x).relu())


class Block(nn.Module):
    """Attention, then feed-forward, norms in front; no residual around an attention that changes the size."""

    def __init__(self, input: int, shape: Shape) -> None:
        super().__init__()
        self.residual = input == shape.size
        self.self_attn = Attention(input, shape)
        self.feed_forward = FeedForward(shape)
        self.norm1, self.norm2 = Norm(input), Norm(shape.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heard = self.self_attn(self.norm1(x))
        x = x + heard if self.residual else heard
        return x + self.feed_forward(self.norm2(x))


class Encoder(nn.Module):
    """(B, T, input) to (B, T, size)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoders0 = nn.ModuleList([Block(shape.input, shape)])
        self.encoders = nn.ModuleList(Block(shape.size, shape) for _ in range(shape.blocks - 1))
        self.tp_encoders = nn.ModuleList(Block(shape.size, shape) for _ in range(shape.last_blocks))
        self.after_norm, self.tp_norm = Norm(shape.size), Norm(shape.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.shape.size**0.5
        x = x + positions(x.shape[1], x.shape[2], x)
        for block in (*self.encoders0, *self.encoders):
            x = block(x)
        x = self.after_norm(x)
        for block in self.tp_encoders:
            x = block(x)
        return self.tp_norm(x)


class SenseVoice(nn.Module):
    """The four query vectors and the features (T, input), encoded to (4 + T, size)."""

    # Rows of embed, in the published order: language auto, event, emotion, text without normalization.
    QUERIES = (0, 1, 2, 15)

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, shape.input)
        self.encoder = Encoder(shape)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        queries = self.embed.weight[list(self.QUERIES)]
        return self.encoder(torch.cat([queries, features.to(queries)])[None])[0]


def positions(length: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """(length, size): sines, then cosines, of 1 to length, each step rounded to the dtype of ``like``."""
    slowest = torch.tensor([10000]).to(like).log() / (size / 2 - 1)
    speeds = (torch.arange(size // 2).to(like) * -slowest).exp()
    angles = torch.arange(1, length + 1).to(like)[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], -1)
