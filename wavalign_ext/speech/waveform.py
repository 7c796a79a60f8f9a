"""What every reader of recordings shares: why one is refused, how long it may be, and its channels as one."""

import numpy as np

CANCELS = 0.1  # channels whose mean has less than this share of the loudest one's power are in antiphase


class AudioError(ValueError):
    """Why a recording cannot be used; ends with the remedy."""


def check_length(seconds: float, longest_s: float) -> None:
    """Raises :class:`AudioError` for a recording that is too long."""
    if seconds > longest_s:
        raise AudioError(f"{seconds:.1f} s are more than {longest_s:g}: cut it, or raise --max-seconds")


def mono(wave: np.ndarray) -> np.ndarray:
    """Samples (N,) of samples (N,) or (N, channels): their mean, or the loudest channel where the mean cancels out."""
    channels = wave.astype(np.float32).reshape(len(wave), -1)
    mean = channels.mean(axis=1)
    power = np.square(channels, dtype=np.float64).sum(axis=0)
    loudest = int(power.argmax())
    return channels[:, loudest] if np.square(mean, dtype=np.float64).sum() < CANCELS * power[loudest] else mean
