"""Buffers against pages without access: whoever reads or writes beyond one dies of SIGSEGV."""

import ctypes
import mmap

import torch
from torch import Tensor

PAGE, NO_ACCESS = mmap.PAGESIZE, 0
READ_WRITE, PRIVATE = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(tensor: Tensor, front: bool = False) -> Tensor:
    """A copy whose last byte (or first, with `front`) touches a page that cannot be accessed; never unmapped."""
    size = tensor.numel() * tensor.element_size()
    body = -(-size // PAGE) * PAGE
    base = _libc.mmap(None, body + 2 * PAGE, READ_WRITE, PRIVATE, -1, 0)
    assert base and base != ctypes.c_void_p(-1).value
    for page in (base, base + PAGE + body):
        assert _libc.mprotect(page, PAGE, NO_ACCESS) == 0
    start = base + PAGE if front else base + PAGE + body - size
    buffer = (ctypes.c_char * size).from_address(start)
    return torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
