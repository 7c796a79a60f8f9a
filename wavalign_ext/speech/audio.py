"""Recordings as waveforms, whole or refused: a file that ends early is named with both lengths.

libsndfile reads samples as they lie in a file; FFmpeg reads MP3, Ogg and FLAC, where libsndfile stops at a length that
the file only claims, and what libsndfile does not know.
"""

import io
import math
import re
import struct
from pathlib import Path

import numpy as np

from wavalign_ext.speech import ffmpeg
from wavalign_ext.speech.waveform import AudioError, check_length, mono

STREAMED = 0x7FFF0000  # a chunk size this large is a stream's, written before its end was known

_CHUNK = re.compile(r"^\s*(?:data|SSND) *: *(\d+) \(should be (\d+)\)", re.MULTILINE)
_FFMPEG = ("MP3", "MPEG", "OGG", "FLAC")  # formats whose length libsndfile takes from a header, whatever comes before


def decode(data: bytes, longest_s: float = math.inf) -> tuple[np.ndarray, int]:
    """(samples (N, channels) float32, rate in Hz) of a file's bytes, in any format of libsndfile or FFmpeg.

    Raises:
        AudioError: empty, no audio, broken, shorter or longer than its header says, or longer than ``longest_s``.
    """
    if not data:
        raise AudioError("the file is empty (0 bytes): record it again")
    wave, rate = _decode(data, longest_s)
    _check_end(data, len(wave) / rate)
    return wave, rate


def _decode(data: bytes, longest_s: float) -> tuple[np.ndarray, int]:
    import soundfile

    if data[:4] in (b"OggS", b"fLaC") or data[:3] == b"ID3" or (data[0] == 0xFF and data[1:2] >= b"\xe0"):
        return ffmpeg.decode(data, longest_s)
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.SoundFileError as error:
        why = getattr(error, "error_string", str(error)).strip().rstrip(".")
        return ffmpeg.decode(data, longest_s, unread=f"libsndfile cannot read it ({why or 'no format it knows'})")
    with file:
        if file.format in _FFMPEG or not file.frames:
            return ffmpeg.decode(data, longest_s)
        rate, promised = file.samplerate, file.frames
        check_length(promised / rate, longest_s)
        cut = _CHUNK.search(file.extra_info)
        if cut and int(cut[2]) < int(cut[1]) < STREAMED:
            there = f"{cut[2]} are there: copy it again"
            raise AudioError(f"truncated: its header promises {cut[1]} bytes of samples, {there}")
        try:
            wave = file.read(promised, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, ValueError) as error:
            raise AudioError(f"libsndfile cannot read its samples ({error}): write it again as WAV or FLAC") from error
    if len(wave) < promised:
        raise AudioError(f"truncated: its header promises {promised} samples, {len(wave)} are there: copy it again")
    return wave, rate


def load_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Any file that :func:`decode` reads, as mono float32 at ``sample_rate`` Hz.

    Raises:
        ValueError: the file is missing, unreadable, empty or has a sample that is no number; the message names it.
    """
    import soxr

    try:
        wave, rate = decode(Path(path).read_bytes())
    except (AudioError, OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise ValueError(f"audio {str(path)!r} cannot be read: {error}") from error
    if len(wave) == 0:
        raise ValueError(f"audio {str(path)!r} is empty: give a recording with at least one sample")
    if not np.isfinite(wave).all():
        raise ValueError(f"audio {str(path)!r} has samples that are not finite: write it again")
    one = mono(wave)
    return one if rate == sample_rate else soxr.resample(one, rate, sample_rate).astype(np.float32)


def _check_end(data: bytes, seconds: float) -> None:
    """Raises :class:`AudioError` where a RIFF file goes on after its last chunk: joined, or written by a lost recorder.

    What follows the samples must be chunks; their names are printable, and no second file is among them.
    """
    if data[:4] != b"RIFF":
        return
    place, samples = 12, 0
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        if samples and (name == b"RIFF" or not all(32 <= letter < 127 for letter in name)):
            break
        samples = size if name == b"data" else samples
        place += 8 + size + size % 2
    rest = len(data) - place
    if samples and rest > 1024 and any(data[place:]):
        more = seconds * (1 + rest / samples)
        raise AudioError(f"its header promises {seconds:.2f} s, the file holds about {more:.2f}: write it again")
