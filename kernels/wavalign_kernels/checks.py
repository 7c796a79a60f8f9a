"""What a caller can get wrong, told as: the value, what is allowed, the remedy."""

import importlib.util
import os

import torch
from torch import Tensor

from .records import ANCHOR, NONE, PREFERENCE, LossInputs

IMPLS = ("auto", "triton", "torch", "reference")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def pick_impl(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation that `impl` stands for on this device."""
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r} is unknown; allowed: {', '.join(IMPLS)}")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device} is not supported; allowed: cpu, cuda (ROCm too); move the tensors there")
    has_triton = importlib.util.find_spec("triton") is not None
    if impl == "auto":
        return "triton" if has_triton and device.type == "cuda" and dtype != torch.float64 else "torch"
    if impl == "triton":
        if not has_triton:
            raise ValueError('impl="triton" needs triton, which is not installed; install it or use impl="auto"')
        if device.type != "cuda" and not interpreted():
            raise ValueError(f'impl="triton" needs an accelerator, the tensors are on {device}; use impl="auto"')
        if dtype == torch.float64:
            raise ValueError('impl="triton" does not take float64; allowed: fp16, bf16, fp32; use impl="torch"')
    return impl


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """hidden (T, H), weight (V, H), bias (V,): one dtype, one device, a contiguous weight."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} do not fit; allowed: (T, H) and (V, H); "
            "pass the head's weight as nn.Linear stores it, untransposed"
        )
    _check_dtype("hidden", hidden)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != hidden.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, hidden is {hidden.dtype}; they must agree; cast one of them")
        _check_device(name, tensor, hidden.device)
        if not tensor.is_contiguous():
            raise ValueError(f"{name} with strides {tensor.stride()} is not contiguous; pass {name}.contiguous()")
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; allowed: ({weight.shape[0]},), one per vocabulary entry")


def check_logits(logits: Tensor) -> None:
    """logits (T, V)."""
    if logits.dim() != 2:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; allowed: (T, V); flatten the leading dimensions")
    _check_dtype("logits", logits)


def check_targets(targets: Tensor, index: Tensor, vocab: int) -> None:
    """Every target at an active position lies in [0, vocab)."""
    chosen = targets[index]
    bad = (chosen < 0) | (chosen >= vocab)
    if bool(bad.any()):
        where = int(index[bad][0])
        raise ValueError(
            f"target {int(targets[where])} at active position {where} is outside the vocabulary; allowed: 0 to "
            f"{vocab - 1}; mark positions without a target inactive (kind NONE, or active=False)"
        )


def check_column(name: str, column: Tensor, length: int, device: torch.device, integer: bool = False) -> None:
    """A per-position column (T,)."""
    if column.shape != (length,):
        raise ValueError(f"{name} has shape {tuple(column.shape)}; allowed: ({length},), one per position of hidden")
    if integer and (column.is_floating_point() or column.dtype == torch.bool):
        raise ValueError(f"{name} is {column.dtype}; allowed: an integer dtype; pass {name}.long()")
    if not integer and column.dtype != torch.bool and not column.is_floating_point():
        raise ValueError(f"{name} is {column.dtype}; allowed: a floating dtype; pass {name}.float()")
    _check_device(name, column, device)


def check_active(active: Tensor, length: int, device: torch.device) -> None:
    """A mask (T,) of dtype bool."""
    if active.dtype != torch.bool:
        raise ValueError(f"active is {active.dtype}; allowed: torch.bool; pass active.bool()")
    check_column("active", active, length, device)


def check_temperature(temperature: float | Tensor, length: int, device: torch.device) -> None:
    """One positive number, or a column (T,)."""
    if isinstance(temperature, Tensor) and temperature.dim() > 0:
        check_column("temperature", temperature, length, device)
    elif not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature={temperature}; allowed: a positive number; greedy log-probs are not defined")


def check_inputs(x: LossInputs, length: int, device: torch.device) -> None:
    """The columns of the record fit the stream and one another."""
    for name in ("kind", "targets"):
        check_column(name, getattr(x, name), length, device, integer=True)
    names = ("weights", "advantages", "old_logp", "ref_logp", "kl_weights", "entropy_weights")
    for name in names:
        if getattr(x, name) is not None:
            check_column(name, getattr(x, name), length, device)
    check_temperature(x.temperature, length, device)
    if (x.ref_logp is None) != (x.kl_weights is None):
        raise ValueError("ref_logp and kl_weights come together; give both for a KL term, or neither")
    if not (0 <= x.clip_low <= 1 and x.clip_high >= 0):
        raise ValueError(f"clip_low={x.clip_low}, clip_high={x.clip_high}; allowed: 0 ≤ clip_low ≤ 1, clip_high ≥ 0")
    for name in ("preference_denominator", "anchor_denominator"):
        value = getattr(x, name)
        if not isinstance(value, Tensor) and not value > 0:
            raise ValueError(f"{name}={value}; allowed: a positive number; use 1.0 where nothing is counted")
    bad = (x.kind != NONE) & (x.kind != PREFERENCE) & (x.kind != ANCHOR)
    if bool(bad.any()):
        where = int(bad.nonzero()[0, 0])
        raise ValueError(f"kind {int(x.kind[where])} at position {where}; allowed: 0 none, 1 preference, 2 anchor")
    if x.advantages is None and bool((x.kind == PREFERENCE).any()):
        raise ValueError("advantages is None but positions are marked PREFERENCE; give one advantage per position")


def _check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}; allowed: float16, bfloat16, float32, float64; cast it")


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, hidden on {device}; they must share a device; move one")
