"""The voices: SVOX Pico (package ttspico, Apache-2.0) at several pitches, rates and volumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from tqdm import tqdm

from wavalign_ext.pocket import SAMPLE_RATE

LOUDEST = 45  # louder, Pico clips
SILENCE, LEAD, TAIL = 0.012, 320, 640  # amplitude at the loudest; samples kept around the speech


@dataclass(frozen=True)
class Voice:
    """A Pico language with its pitch and rate in per cent. ``role``: warm, rl, held_out or answer."""

    name: str
    language: str
    pitch: int
    rate: int
    role: str
    volume: int = LOUDEST


# The model hears "warm" voices while it is warmed up, "rl" voices then and while it is trained by reward, others never.
VOICES = (
    Voice("gb", "en-GB", 100, 100, "warm"),
    Voice("us", "en-US", 100, 100, "warm"),
    Voice("gb-low", "en-GB", 84, 95, "rl"),
    Voice("us-fast", "en-US", 94, 120, "rl"),
    Voice("gb-high", "en-GB", 116, 104, "rl"),
    Voice("us-new", "en-US", 110, 104, "held_out"),
    Voice("gb-new", "en-GB", 92, 108, "held_out"),
)
# The answering voice, in two manners. An open recogniser understands it best of Pico's: docs/evidence.md.
LIVELY, DULL = "lively", "dull"
MANNERS = {
    LIVELY: Voice("lively", "en-GB", 128, 108, "answer"),
    DULL: Voice("dull", "en-GB", 80, 92, "answer", volume=26),
}


def speak(jobs: Sequence[tuple[Voice, str]], progress: str, processes: int = 2) -> list[np.ndarray]:
    """One trimmed mono int16 waveform at 16 kHz per (voice, sentence), in order."""
    with get_context("spawn").Pool(processes) as pool:
        return list(tqdm(pool.imap(_speak, jobs, chunksize=32), progress, total=len(jobs), unit="utt"))


def _speak(job: tuple[Voice, str]) -> np.ndarray:
    import ttspico

    voice, sentence = job
    engine = ttspico.TtsEngine(voice.language)  # a fresh one per sentence: it keeps state
    engine.pitch, engine.rate, engine.volume = voice.pitch, voice.rate, voice.volume
    wave = np.frombuffer(engine.speak(sentence) or b"", "<i2")
    loud = np.flatnonzero(np.abs(wave.astype(np.float32)) > SILENCE * 32768 * voice.volume / LOUDEST)
    if not len(loud):
        raise ValueError(f"voice {voice.name!r} said nothing for {sentence!r} at {SAMPLE_RATE} Hz")
    return wave[max(0, loud[0] - LEAD) : loud[-1] + TAIL].copy()
