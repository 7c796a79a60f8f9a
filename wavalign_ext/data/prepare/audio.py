"""Any recording as a clean waveform: mono, at the codec's rate, without silence at its ends."""

import io
import re
from dataclasses import dataclass

import numpy as np

SILENT = 1e-3  # peak amplitude below which nobody speaks: -60 dB of full scale
LEAD_S, TAIL_S = 0.02, 0.04  # kept before and after the speech, as the pocket voices have it
STREAMED = 0x7FFF0000  # a chunk size this large is a stream's, written before its end was known

_CHUNK = re.compile(r"^\s*(?:data|SSND) *: *(\d+) \(should be (\d+)\)", re.MULTILINE)


class AudioError(ValueError):
    """Why a recording cannot be used; ends with the remedy."""


@dataclass(frozen=True)
class Limits:
    """What is done to every recording. ``trim_db``: silence is what stays this far below the peak; 0 keeps it all."""

    longest_s: float = 120.0
    trim_db: float = 40.0


def check_length(seconds: float, limits: Limits) -> None:
    """Raises :class:`AudioError` for a recording longer than ``limits``."""
    if seconds > limits.longest_s:
        raise AudioError(f"{seconds:.1f} s are more than {limits.longest_s:g}: cut it, or raise --max-seconds")


def decode(data: bytes, limits: Limits) -> tuple[np.ndarray, int]:
    """(samples (N, channels) float32, rate in Hz) of a file's bytes, in any format of libsndfile.

    Raises:
        AudioError: empty, no audio, shorter than its header says, or longer than ``limits``.
    """
    import soundfile

    if not data:
        raise AudioError("the file is empty (0 bytes): record it again")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, promised = file.samplerate, file.frames
            if promised > limits.longest_s * rate:
                raise AudioError(
                    f"{promised / rate:.1f} s are more than {limits.longest_s:g}: cut it, or --max-seconds"
                )
            wave = file.read(dtype="float32", always_2d=True)
            log = file.extra_info
    except soundfile.SoundFileError as error:
        why = getattr(error, "error_string", str(error)).strip().rstrip(".")
        remedy = "write it again as WAV or FLAC (ffmpeg reads more formats)"
        raise AudioError(f"libsndfile cannot read it ({why or 'no format it knows'}): {remedy}") from error
    cut = _CHUNK.search(log)
    if cut and int(cut[2]) < int(cut[1]) < STREAMED:
        raise AudioError(f"truncated: its header promises {cut[1]} bytes of samples, {cut[2]} are there: copy it again")
    if len(wave) < promised:
        raise AudioError(f"truncated: its header promises {promised} samples, {len(wave)} are there: copy it again")
    return wave, rate


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
    mono = wave.astype(np.float32).reshape(len(wave), -1).mean(axis=1)
    peak = float(np.abs(mono).max())
    if peak < SILENT:
        raise AudioError(f"it is silent (peak {peak:.1g}): record it again, or drop the line")
    if peak > 1:  # floats beyond full scale
        mono = mono / peak
    if rate != wanted:
        mono = soxr.resample(mono, rate, wanted).astype(np.float32)
    return np.clip(_trimmed(mono, wanted, limits.trim_db), -1, 1)


def _trimmed(wave: np.ndarray, rate: int, below_db: float) -> np.ndarray:
    if below_db <= 0 or not len(wave):
        return wave
    level = np.abs(wave)
    loud = np.flatnonzero(level > level.max() * 10 ** (-below_db / 20))
    if not len(loud):
        return wave
    return wave[max(0, loud[0] - int(LEAD_S * rate)) : loud[-1] + int(TAIL_S * rate)]
