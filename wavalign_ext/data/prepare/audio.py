"""Any recording as a clean waveform: mono, at the codec's rate, without silence at its ends."""

from dataclasses import dataclass

import numpy as np

from wavalign_ext.speech.waveform import AudioError, mono

SILENT = 1e-3  # peak amplitude below which nobody speaks: -60 dB of full scale
LEAD_S, TAIL_S = 0.02, 0.04  # kept before and after the speech, as the pocket voices have it


@dataclass(frozen=True)
class Limits:
    """What is done to every recording. ``trim_db``: silence is what stays this far below the peak; 0 keeps it all."""

    longest_s: float = 120.0
    trim_db: float = 40.0


def clean(wave: np.ndarray, rate: int, wanted: int, limits: Limits) -> np.ndarray:
    """Mono float32 in [-1, 1] at ``wanted`` Hz, trimmed, from samples (N,) or (N, channels) at ``rate`` Hz.

    Raises:
        AudioError: no samples, samples that are no numbers, or silence.
    """
    import soxr

    if not len(wave):
        raise AudioError("it has no samples: record it again")
    wrong = int((~np.isfinite(wave)).sum())
    if wrong:
        raise AudioError(f"{wrong} of its samples are not finite (NaN or infinity): write it again")
    one = mono(wave)
    peak = float(np.abs(one).max())
    if peak < SILENT:
        raise AudioError(f"it is silent (peak {peak:.1g}): record it again, or drop the line")
    if peak > 1:  # floats beyond full scale
        one = one / peak
    if rate != wanted:
        one = soxr.resample(one, rate, wanted).astype(np.float32)
    return np.clip(_trimmed(one, wanted, limits.trim_db), -1, 1)


def _trimmed(wave: np.ndarray, rate: int, below_db: float) -> np.ndarray:
    if below_db <= 0 or not len(wave):
        return wave
    level = np.abs(wave)
    loud = np.flatnonzero(level > level.max() * 10 ** (-below_db / 20))
    if not len(loud):
        return wave
    return wave[max(0, loud[0] - int(LEAD_S * rate)) : loud[-1] + int(TAIL_S * rate)]
