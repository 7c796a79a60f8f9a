"""Where a process runs the cases: interpreted on the CPU, or compiled on the accelerator (marker gpu).

Triton decides it at its import, for the whole process: TRITON_INTERPRET=1 or not.
"""

import os
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda", None if INTERPRETED else 0)
SLACK = 1.0 if INTERPRETED else 4.0
"""Of tolerances: an accelerator's exp2 is off by 2⁻²², and its fp32 argument by 2⁻²⁴ of itself; the interpreter's by
neither."""

only_interpreted = pytest.mark.skipif(not INTERPRETED, reason="it is about the interpreter")


def marks() -> list[pytest.MarkDecorator]:
    """For `pytestmark` of a file of cases."""
    if INTERPRETED:
        return []
    return [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator is here")]


def put(record: Any) -> Any:
    """A tensor, or a record with tensors in it, on the device."""
    if isinstance(record, Tensor):
        return record.to(DEVICE)
    moved = {f.name: getattr(record, f.name) for f in fields(record)}
    return replace(record, **{name: put(value) for name, value in moved.items() if isinstance(value, Tensor)})
