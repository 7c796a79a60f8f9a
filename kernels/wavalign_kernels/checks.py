"""What a caller can get wrong, told as: the value, what is allowed, the remedy."""

import importlib.util
import math
import os
from collections.abc import Callable
from numbers import Real

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


def check_chunk_rows(chunk_rows: int | None) -> None:
    """None, or a whole number of rows."""
    if chunk_rows is not None and (type(chunk_rows) is not int or chunk_rows < 1):
        raise ValueError(f"chunk_rows={chunk_rows!r}; allowed: None, or a whole number of at least 1")


def check_column(name: str, column: Tensor, length: int, device: torch.device, kind: str = "floating") -> None:
    """A per-position column (T,) of a floating or an integer dtype, or a mask."""
    dtype = column.dtype
    if column.shape != (length,):
        raise ValueError(f"{name} has shape {tuple(column.shape)}; allowed: ({length},), one per position of hidden")
    if kind == "mask" and dtype != torch.bool:
        raise ValueError(f"{name} is {dtype}; allowed: torch.bool; pass {name}.bool()")
    if kind == "integer" and (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
        raise ValueError(f"{name} is {dtype}; allowed: an integer dtype; pass {name}.long()")
    if kind == "floating" and not dtype.is_floating_point:
        raise ValueError(f"{name} is {dtype}; allowed: a floating dtype; pass {name}.float()")
    _check_device(name, column, device)


def check_index(index: Tensor | None, device: torch.device) -> None:
    """The active positions (A,), where the caller knows them; what it holds is for `check_values`."""
    if index is None:
        return
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ValueError(
            f"index has shape {tuple(index.shape)} and dtype {index.dtype}; allowed: (A,) of torch.int64, each active "
            "position once; pass active.nonzero()[:, 0], or leave it out"
        )
    _check_device("index", index, device)


def check_temperature(temperature: float | Tensor, length: int, device: torch.device) -> None:
    """A number, a scalar (), or a column (T,)."""
    if isinstance(temperature, Tensor) and temperature.dim() > 0:
        check_column("temperature", temperature, length, device)
    else:
        _check_scalar("temperature", temperature, device, *SCALARS["temperature"])


def check_inputs(x: LossInputs, length: int, device: torch.device) -> None:
    """Shapes, dtypes and numbers of the record; what tensors hold on a device is for `check_values`."""
    for name in ("kind", "targets"):
        check_column(name, getattr(x, name), length, device, "integer")
    for name in ("weights", "advantages", "old_logp", "ref_logp", "kl_weights", "entropy_weights"):
        if getattr(x, name) is not None:
            check_column(name, getattr(x, name), length, device)
    check_temperature(x.temperature, length, device)
    if (x.ref_logp is None) != (x.kl_weights is None):
        raise ValueError("ref_logp and kl_weights come together; give both for a KL term, or neither")
    if not (_is_number(x.clip_low) and _is_number(x.clip_high) and 0 <= x.clip_low <= 1 and x.clip_high >= 0):
        raise ValueError(
            f"clip_low={x.clip_low}, clip_high={x.clip_high}; allowed: 0 ≤ clip_low ≤ 1, clip_high ≥ 0; pass numbers"
        )
    if not (_is_number(x.clip_c) and x.clip_c > 1):
        raise ValueError(f"clip_c={x.clip_c}; allowed: a number above 1; leave it out for no dual clip")
    if not (_is_number(x.entropy_coef) and math.isfinite(x.entropy_coef)):
        raise ValueError(f"entropy_coef={x.entropy_coef}; allowed: a finite number; use 0.0 for no entropy term")
    for name in ("preference_denominator", "anchor_denominator", "lam"):
        if getattr(x, name) is not None:
            _check_scalar(name, getattr(x, name), device, *SCALARS[name])


def check_values(
    targets: Tensor,
    active: Tensor | None,
    vocab: int,
    temperature: float | Tensor,
    x: LossInputs | None = None,
    index: Tensor | None = None,
) -> None:
    """What the tensors hold, where it counts. A device is asked once for all of it, next to `rows.active_index`."""
    found: list[tuple[Tensor, Callable[[int], str]]] = []

    def refuse(bad: Tensor, say: Callable[[int], str], everywhere: bool = False) -> None:
        found.append((bad if active is None or everywhere else bad & active, say))

    def column(name: str, values: Tensor, allowed: str, remedy: str, bad: Tensor) -> None:
        refuse(bad, lambda at: f"{name} is {float(values[at])} at position {at}; allowed: {allowed}; {remedy}")

    if x is not None:
        active, preference = (x.kind == PREFERENCE) | (x.kind == ANCHOR), x.kind == PREFERENCE
        refuse(
            ~active & (x.kind != NONE),
            lambda at: f"kind {int(x.kind[at])} at position {at}; allowed: 0 none, 1 preference, 2 anchor",
            everywhere=True,
        )
        if x.advantages is None:
            refuse(
                preference,
                lambda _: "advantages is None but positions are marked PREFERENCE; give one advantage per position",
            )
        for name in ("weights", "kl_weights", "entropy_weights"):
            values, read = getattr(x, name), active if name == "weights" else preference
            if values is not None:
                bad = read & ~((values >= 0) & (values < torch.inf))
                column(name, values, "0 or a positive number", "mask what should not count, negate advantages", bad)
        for name in ("preference_denominator", "anchor_denominator", "lam"):
            _scalar_on_device(found, name, getattr(x, name))
    if index is not None:
        _index_on_device(found, index, torch.ones_like(targets, dtype=torch.bool) if active is None else active)
    refuse(
        (targets < 0) | (targets >= vocab),
        lambda at: (
            f"target {int(targets[at])} at active position {at} is outside the vocabulary; allowed: 0 to {vocab - 1}; "
            "mark positions without a target inactive (kind NONE, or active=False)"
        ),
    )
    if isinstance(temperature, Tensor) and temperature.dim():
        bad = ~((temperature > 0) & (temperature < torch.inf))
        column("temperature", temperature, SCALARS["temperature"][0], SCALARS["temperature"][1], bad)
    else:
        _scalar_on_device(found, "temperature", temperature)
    found = [(bad, say) for bad, say in found if bad.numel()]  # a stack of what is in empty columns would be of nothing
    for number, hit in enumerate(torch.stack([bad.any() for bad, _ in found]).tolist() if found else []):
        if hit:
            bad, say = found[number]
            raise ValueError(say(int(bad.reshape(-1).nonzero()[0, 0])))


# Of each scalar: what is allowed, the remedy, the largest value.
SCALARS = {
    "temperature": ("a positive number", "greedy log-probs are not defined", None),
    "preference_denominator": ("a positive number", "use 1.0 where nothing is counted", None),
    "anchor_denominator": ("a positive number", "use 1.0 where nothing is counted", None),
    "lam": ("a number from 0 to 1", "use None for the plain sum of both losses", 1.0),
}


def _fits(value, most: float | None):
    """A positive number, or one from 0 to the most; of a tensor, as a tensor."""
    return (value > 0) & (value < torch.inf) if most is None else (value >= 0) & (value <= most)


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_scalar(name: str, value, device: torch.device, allowed: str, remedy: str, most: float | None) -> None:
    """A number, or a tensor () on the stream's device or on the CPU, where its value is seen for nothing."""
    if isinstance(value, Tensor):
        if value.dim() or value.dtype == torch.bool or value.dtype.is_complex:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}; allowed: one real number, shape (); "
                "pass a number, or sum over the batch first"
            )
        if value.device.type != "cpu":
            return _check_device(name, value, device)
    if not (isinstance(value, Tensor) or _is_number(value)) or not bool(_fits(value, most)):
        raise ValueError(f"{name}={value}; allowed: {allowed}; {remedy}")


def _scalar_on_device(found: list, name: str, value) -> None:
    """A scalar that `_check_scalar` could not look into."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        allowed, remedy, most = SCALARS[name]
        found.append((~_fits(value, most), lambda _: f"{name}={value}; allowed: {allowed}; {remedy}"))


def _index_on_device(found: list, index: Tensor, active: Tensor) -> None:
    """Each active position once, and no other."""
    length = len(active)
    remedy = "; allowed: each active position once; pass active.nonzero()[:, 0], or leave it out"
    found.append(
        (
            (index < 0) | (index >= length),
            lambda at: f"index is {int(index[at])} at entry {at}, of {length} positions{remedy}",
        )
    )
    if length:
        times = torch.zeros(length, dtype=torch.long, device=active.device)
        times.index_add_(0, index.clamp(0, length - 1), torch.ones_like(index))
        found.append((times != active.long(), lambda at: f"index has position {at} {int(times[at])} times{remedy}"))


def _check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}; allowed: float16, bfloat16, float32, float64; cast it")


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, hidden on {device}; they must share a device; move one")
