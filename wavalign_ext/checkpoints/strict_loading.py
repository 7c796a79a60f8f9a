"""Models whose every tensor is what their files say.

A loader can be wrong without a word: transformers 5 runs ``_init_weights`` after it has loaded, and a class that writes
through ``.data`` there (GLM-4-Voice's encoder does) is random again. So a class that is not transformers' own is filled
by :func:`load_strictly`, and what another library has loaded is compared with its files.
"""

import random
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

REMEDY = "download the weights again, or report which versions of torch and transformers are installed"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


class Weights(Mapping[str, Tensor]):
    """The tensors of weight files by name, each read when it is asked for.

    Args:
        files: ``.safetensors``, or what torch.save wrote of a state dict; nothing else is unpickled.
        part: the key of the state dict in a checkpoint that holds more.

    Raises:
        ValueError: a file is missing, truncated or holds something else.
    """

    def __init__(self, files: Sequence[Path], part: str | None = None) -> None:
        self._names: dict[str, Any] = {}
        for file in files:
            try:
                tensors = _opened(file, part)
            except Exception as error:  # safetensors, zipfile and pickle have classes of their own
                raise ValueError(f"weights {str(file)!r} cannot be read: {_one_line(error)}; {REMEDY}") from error
            self._names |= dict.fromkeys(tensors.keys(), tensors)

    @classmethod
    def of(cls, folder: Path) -> "Weights":
        """Those of a model folder: what transformers would load. Raises ValueError where there are none."""
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (folder / name).is_file():
                return cls([folder / name])
            stem, suffix = name.rsplit(".", 1)
            if (folder / f"{name}.index.json").is_file():
                shards = sorted(folder.glob(f"{stem}-*-of-*.{suffix}"))
                return cls(shards)
        raise ValueError(f"{str(folder)!r} has no weights: no model.safetensors or pytorch_model.bin")

    def __getitem__(self, name: str) -> Tensor:
        tensors = self._names[name]
        return tensors[name] if isinstance(tensors, dict) else tensors.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @cached_property
    def elements(self) -> int:
        """How many numbers they hold in all."""
        return sum(tensor.numel() for tensor in self.values())


def _opened(file: Path, part: str | None) -> Any:
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        return safe_open(file, framework="pt")
    tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    tensors = tensors[part] if part else tensors
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError("it holds more than tensors")
    return dict(tensors)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Fill every parameter and persistent buffer of ``model``, in its own dtypes, and compare.

    The model must have been built on its device, not on ``meta``: what it computes in its constructor is kept.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape, or did not arrive; ``where`` comes first.
    """
    state = model.state_dict()
    _compare_names(set(state), set(weights), where)
    with torch.no_grad():
        for name, saved in weights.items():
            if state[name].shape != saved.shape:
                raise _wrong(where, "have another shape", [f"{name} {_sizes(state[name], saved)}"])
            state[name].copy_(saved)
    check(model, weights, where)


def check(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Compare what somebody loaded; raises as :func:`load_strictly`."""
    state = model.state_dict()
    _compare_names(set(state), set(weights), where)
    _compare(state, weights, where)


def _compare(loaded: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Every tensor of ``weights`` with the loaded one, bit by bit, after a cast to the loaded dtype."""
    wrong = [name for name, saved in weights.items() if not _same_bits(loaded[name], saved)]
    if wrong:
        raise _wrong(where, f"of {len(weights)} are not what the file says", wrong)


def pretrained(kind: Any, folder: Path, where: str, **arguments: Any) -> Any:
    """``kind.from_pretrained`` of transformers' own classes, local, in eval mode, compared with the files.

    Raises:
        ValueError: no weights, or they do not load, or a tensor is missing, unexpected or not as in the file.
    """
    Weights.of(folder)  # its message is shorter than transformers' own
    try:
        model = kind.from_pretrained(folder, local_files_only=True, **arguments)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{where} has no weights that load: {_one_line(error)[:300]}") from error
    check_pretrained(model, folder, where)
    return model.eval()


def check_pretrained(model: Any, folder: Path, where: str) -> None:
    """Compare a loaded model of transformers with the files of its folder.

    Renamed and merged tensors are compared as the library would save them; a tied tensor may lack in the file, and
    what the class declares as optional or ignored is. Buffers that no file holds are compared with computed ones.

    Raises:
        ValueError: as :func:`load_strictly`.
    """
    from transformers.core_model_loading import revert_weight_conversion

    weights, state = Weights.of(folder), model.state_dict()
    saved_as = revert_weight_conversion(model, state)
    names = {_match(name, saved_as, f"{model.base_model_prefix}."): name for name in weights}
    found = {_place(saved_as[name]) for name in names if name in saved_as}
    missing = {name for name, tensor in saved_as.items() if name not in names and _place(tensor) not in found}
    keys = SimpleNamespace(missing_keys=missing, unexpected_keys=names.keys() - saved_as.keys())
    model._adjust_missing_and_unexpected_keys(keys)  # the class's own exceptions
    _compare_names(keys.missing_keys, keys.unexpected_keys, where)
    _compare(saved_as, _Renamed(weights, {n: there for n, there in names.items() if n in saved_as}), where)
    _compare_computed(model, set(state), where)


def _match(name: str, known: Mapping[str, Any], prefix: str) -> str:
    """A file's name for a tensor among the ``known`` ones; files of a base model or of one with a head differ by it."""
    return next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in known), name)


class _Renamed(Mapping[str, Tensor]):
    """Weights by other names; still read one by one."""

    def __init__(self, weights: Weights, names: Mapping[str, str]) -> None:
        self._weights, self._of = weights, names

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[self._of[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


def _compare_computed(model: Any, in_files: set[str], where: str) -> None:
    """Buffers that are computed and never saved, as rotary frequencies: a model made on ``meta`` can lose them."""
    found = {name: buffer for name, buffer in model.named_buffers() if name not in in_files}
    if not found:
        return
    from accelerate import init_empty_weights

    settings = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    with same_random_state(), init_empty_weights(include_buffers=False):
        fresh = type(model)._from_config(deepcopy(model.config), **settings)
    computed = dict(fresh.named_buffers())
    wrong = [name for name, buffer in found.items() if not _same_bits(buffer, computed[name])]
    if wrong:
        raise _wrong(where, "are computed, and not what the class computes", wrong)


def _compare_names(wanted: set[str], given: set[str], where: str) -> None:
    for names, how in (
        (wanted - given, "are missing in the file"),
        (given - wanted, "of the file are not the model's"),
    ):
        if names:
            raise _wrong(where, how, sorted(names))


def _same_bits(loaded: Tensor, saved: Tensor) -> bool:
    if loaded.shape != saved.shape:
        return False
    one, other = (t.detach().reshape(-1).cpu() for t in (loaded, saved.to(loaded.dtype)))
    bits = _BITS.get(one.element_size(), torch.uint8)
    return torch.equal(one.contiguous().view(bits), other.contiguous().view(bits))


def _place(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Equal for tied tensors."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _wrong(where: str, how: str, names: Sequence[str]) -> ValueError:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return ValueError(f"{where}: {len(names)} tensors {how} ({shown}): {REMEDY}")


def _sizes(loaded: Tensor, saved: Tensor) -> str:
    return f"{tuple(saved.shape)} for {tuple(loaded.shape)}"


@contextmanager
def same_random_state() -> Iterator[None]:
    """Leave the random states of Python, numpy and torch's CPU as they were: a model's constructor may draw or seed."""
    python, numpy_ = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):  # the default asks every GPU, which makes a context there
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
