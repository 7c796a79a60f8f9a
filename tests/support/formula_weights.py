"""Weights and waveforms from a formula, so that numbers computed from them elsewhere can be repeated anywhere."""

import zlib

import numpy as np
import torch


def noise(name: str, count: int) -> np.ndarray:
    """``count`` numbers spread over [-1, 1): splitmix64 of their index and the name's CRC-32, so exact everywhere."""
    x = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64(zlib.crc32(name.encode()) << 32)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(40)).astype(np.float32) / 2**23) - 1


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Norms' weights near 1, biases small, embeddings of unit size, the rest as large as keeps a signal's size."""
    values = torch.from_numpy(noise(name, int(np.prod(shape)))).reshape(shape)
    if len(shape) == 1:
        return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    if "embed" in name:
        return values
    return values * (3 / np.prod(shape[1:])) ** 0.5


def tensors_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A formula's weight for every name of the network's state."""
    return {name: weight(name, tuple(value.shape)) for name, value in network.state_dict().items()}


def speechlike(seconds: float, rate: int = 16000) -> np.ndarray:
    """Harmonics of a gliding pitch that swell twice a second, and a little noise; float32 in [-1, 1]."""
    t = np.arange(round(seconds * rate)) / rate
    pitch = 2 * np.pi * (120 * t + 15 * t**2)
    voiced = sum(np.sin(n * pitch) / n for n in range(1, 20))
    wave = 0.2 * voiced * np.sin(2 * np.pi * t) ** 2 + 0.01 * noise("breath", len(t))
    return wave.astype(np.float32)
