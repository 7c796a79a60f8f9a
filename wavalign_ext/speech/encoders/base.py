"""Speech encoders behind one small protocol: a waveform to the feature vectors that stand in a prompt.

They are frozen: ``wavalign prepare`` runs them once per recording, and training sees what they gave.
``sensevoice``, ``whisper``, ``qwen2_audio`` and ``step_audio2`` are here; other packages add theirs with
:func:`register_encoder`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn


class SpeechEncoder(Protocol):
    """``sample_rate`` in Hz; ``size`` numbers per feature vector; recordings last ``least_s`` to ``most_s`` seconds."""

    name: str
    sample_rate: int
    size: int
    least_s: float
    most_s: float
    device: torch.device
    dtype: torch.dtype

    def fingerprint(self) -> str:
        """Equal for encoders that give equal features: name, settings and every weight. A key for caches."""
        ...

    def frames(self, samples: int) -> int:
        """How many vectors a recording of ``samples`` gives. Raises ValueError when it is too short or too long."""
        ...

    def encode(self, wave: np.ndarray) -> torch.Tensor:
        """(frames, size) in ``dtype`` on the CPU, of a mono float32 waveform in [-1, 1]; equal waves, equal vectors.

        Raises ValueError for a waveform that is too short or too long, or not finite.
        """
        ...


_ENCODERS: dict[str, Callable[..., SpeechEncoder]] = {}


def register_encoder(name: str) -> Callable[[Callable[..., SpeechEncoder]], Callable[..., SpeechEncoder]]:
    """Register an encoder class under ``type: NAME``. Raises ValueError when the name is taken."""

    def register(factory: Callable[..., SpeechEncoder]) -> Callable[..., SpeechEncoder]:
        if name in _ENCODERS:
            raise ValueError(f"encoder {name!r} is registered already: choose another name")
        _ENCODERS[name] = factory
        return factory

    return register


def load_encoder(spec: Mapping[str, Any]) -> SpeechEncoder:
    """The encoder of ``{"type": name, **arguments}``. Raises ValueError for an unknown type, naming the known ones."""
    arguments = dict(spec)
    name = arguments.pop("type", None)
    if name not in _ENCODERS:
        raise ValueError(f"encoder type {name!r} is not known: one of {', '.join(sorted(_ENCODERS))}")
    return _ENCODERS[name](**arguments)


class FrozenEncoder(ABC):
    """What the encoders here share: the checks around :meth:`_frames` and :meth:`_encode`, and the fingerprint.

    Args:
        network: loaded, in the dtype it runs in; moved to ``device`` and frozen.
        facts: what else decides on the features.

    Raises:
        ValueError: this machine has no such device.
    """

    name: str
    sample_rate = 16000
    size: int
    least_s: float
    most_s: float

    def __init__(self, network: nn.Module, device: str, facts: Mapping[str, Any]) -> None:
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"encoder {self.name!r}: device={device!r} is not on this machine: use device=cpu")
        self.device, self._facts = torch.device(device), dict(facts)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.dtype = next(network.parameters()).dtype

    @abstractmethod
    def _frames(self, samples: int) -> int: ...

    @abstractmethod
    def _encode(self, wave: torch.Tensor) -> torch.Tensor: ...

    def fingerprint(self) -> str:
        """See :class:`SpeechEncoder`."""
        digest = hashlib.sha256(repr((self.name, str(self.dtype), sorted(self._facts.items()))).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def frames(self, samples: int) -> int:
        """See :class:`SpeechEncoder`."""
        least, most = self.least_s * self.sample_rate, self.most_s * self.sample_rate
        if not least - 0.5 < samples < most + 0.5:
            raise ValueError(
                f"encoder {self.name!r}: a recording of {samples / self.sample_rate:.3f} s is too "
                f"{'short' if samples < least else 'long'}: {self.least_s:.3g} to {self.most_s:.3g} s are allowed"
            )
        return self._frames(samples)

    @torch.no_grad()  # not inference_mode: what it gives could not take part in training
    def encode(self, wave: np.ndarray) -> torch.Tensor:
        """See :class:`SpeechEncoder`."""
        wave = np.ascontiguousarray(wave, dtype=np.float32)
        if wave.ndim != 1:
            raise ValueError(f"encoder {self.name!r}: a waveform of shape {wave.shape} is not mono: mix its channels")
        expected = self.frames(len(wave))
        if not np.isfinite(wave).all():
            raise ValueError(f"encoder {self.name!r}: the recording has samples that are not finite: write it again")
        features = self._encode(torch.from_numpy(wave)).cpu()
        assert features.shape == (expected, self.size), (features.shape, expected, self.size)
        return features
