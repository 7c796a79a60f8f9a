"""Pace and pitch of an answer: numbers that no reward looks at."""

import numpy as np

FRAME_S, HOP_S = 0.04, 0.01
LOWEST_HZ, HIGHEST_HZ = 60.0, 400.0
PERIODIC = 0.5  # normalised autocorrelation of a voiced frame
OCTAVE_COST = 0.1
QUIET = 0.05  # of the loudest frame: below it there is no voice
LEAST_FRAMES = 10


def pitch_spread(wave: np.ndarray, rate: int) -> float | None:
    """Standard deviation of the voice's pitch in semitones, without its 5 % at either end; None where no voice is.

    Pitch by autocorrelation, frame by frame (Rabiner 1977). About 0 is a monotone; read speech has 2 to 4.
    """
    pitch = _pitch_hz(np.asarray(wave, dtype=np.float64), rate)
    if len(pitch) < LEAST_FRAMES:
        return None
    semitones = 12 * np.log2(pitch)
    low, high = np.quantile(semitones, [0.05, 0.95])
    return float(np.std(semitones[(semitones >= low) & (semitones <= high)]))


def _pitch_hz(wave: np.ndarray, rate: int) -> np.ndarray:
    """The pitch of each voiced frame."""
    size, hop = round(FRAME_S * rate), round(HOP_S * rate)
    if len(wave) < size:
        return np.empty(0)
    frames_FT = np.lib.stride_tricks.sliding_window_view(wave, size)[::hop]
    frames_FT = frames_FT - frames_FT.mean(1, keepdims=True)
    loud_F = np.sqrt((frames_FT**2).mean(1))
    frames_FT = frames_FT[loud_F > QUIET * max(loud_F.max(), 1e-9)] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames_FT, 2 * size, axis=1)) ** 2
    correlation_FL = np.fft.irfft(power, axis=1)[:, :size]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), 2 * size)) ** 2)[:size]  # a frame's window has one too
    shortest, longest = int(rate / HIGHEST_HZ), min(int(rate / LOWEST_HZ), size - 1)
    normal_FL = correlation_FL[:, shortest : longest + 1] / np.maximum(correlation_FL[:, :1], 1e-12)
    normal_FL = normal_FL / np.maximum(window[shortest : longest + 1] / window[0], 0.1)
    # Two periods fit as well as one: a longer lag must be better to be taken (Boersma 1993).
    best_F = (normal_FL - OCTAVE_COST * np.log2(np.arange(shortest, longest + 1))).argmax(1)
    voiced_F = normal_FL[np.arange(len(best_F)), best_F] > PERIODIC
    return rate / (best_F[voiced_F] + shortest)
