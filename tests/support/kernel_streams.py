"""Heads and packed streams for tests of the fused loss."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from wavalign_kernels import NONE, LossInputs


def make_head(
    rows: int, width: int, vocab: int, dtype=torch.float64, bias: bool = True, device: Any = "cpu"
) -> list[Any]:
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(rows, width, generator=g), torch.randn(vocab, width, generator=g) * 2 / width**0.5]
    made.append(torch.randn(vocab, generator=g) if bias else None)
    return [None if t is None else t.to(device, dtype).requires_grad_() for t in made]


def make_inputs(rows: int, vocab: int, device: Any = "cpu", **changes: Any) -> LossInputs:
    """Every term switched on; a third of the positions inactive, with targets that mean nothing."""
    g = torch.Generator().manual_seed(0)
    kind = torch.randint(3, (rows,), generator=g)
    targets = torch.randint(vocab, (rows,), generator=g)
    noise = torch.randn(5, rows, generator=g)
    x = replace(
        LossInputs(
            kind=kind,
            targets=torch.where(kind == NONE, -100, targets),
            weights=noise[0].abs(),
            advantages=noise[1],
            old_logp=noise[2] * 0.3 - 7,
            ref_logp=noise[3] * 0.3 - 7,
            kl_weights=noise[4].abs() * 0.1,
            entropy_coef=0.02,
            clip_c=1.3,
            lam=0.3,
            preference_denominator=17.0,
            anchor_denominator=5.0,
            temperature=0.8 + torch.rand(rows, generator=g),
        ),
        **changes,
    )
    columns = {f.name: getattr(x, f.name) for f in fields(x)}
    return replace(x, **{name: c.to(device) for name, c in columns.items() if isinstance(c, Tensor)})
