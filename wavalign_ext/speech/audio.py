"""Audio files as waveforms."""

from pathlib import Path

import numpy as np


def load_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Any file that libsndfile reads, as mono float32 at ``sample_rate`` Hz.

    Raises:
        ValueError: the file is missing, unreadable, empty or has a sample that is no number; the message names it.
    """
    import soundfile
    import soxr

    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"audio {str(path)!r} cannot be read: {error}") from error
    if len(wave) == 0:
        raise ValueError(f"audio {str(path)!r} is empty: give a recording with at least one sample")
    if not np.isfinite(wave).all():
        raise ValueError(f"audio {str(path)!r} has samples that are not finite: write it again")
    mono = wave.mean(axis=1)
    return mono if rate == sample_rate else soxr.resample(mono, rate, sample_rate).astype(np.float32)
