"""Compressed recordings by FFmpeg (PyAV), to the end of the file, whatever its header says.

What FFmpeg reads silently is checked here: an MP3 or Ogg that was cut, and lengths that a header promises.
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from wavalign_ext.speech.waveform import AudioError, check_length, mono

# The first frame of an MP3 by most encoders: a header, no sound, then this tag and how many frames follow.
_XING = re.compile(rb"\xff[\xe0-\xff]..(?:.{9}|.{17}|.{32})(?:Xing|Info)\0\0\0[\x01-\x0f](.{4})", re.DOTALL)
_ID3 = re.compile(rb"ID3[\x02-\x04][\0-\x0f].([\0-\x7f]{4})", re.DOTALL)
_PROMISES = ("flac", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # containers that say their length
_SLACK_S = 0.1  # a container's length may count what an encoder puts before and after the sound
_FIRST, _LAST = 2, 4  # header flags of an Ogg page
_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)  # bit rates of MPEG 1 Layer III
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)  # of MPEG 2 and 2.5


def decode(data: bytes, longest_s: float, unread: str = "") -> tuple[np.ndarray, int]:
    """(samples (N, channels) float32, rate in Hz); ``unread`` says why nobody else reads it.

    Raises:
        AudioError: no audio, broken, shorter than its header says, or longer than ``longest_s``.
    """
    if data[:4] == b"OggS":
        return _joined([_decode(link, longest_s) for link in _ogg_links(data)])
    return _decode(_without_tags(data), longest_s, unread)


def _decode(data: bytes, longest_s: float, unread: str = "") -> tuple[np.ndarray, int]:
    import av
    from av.error import FFmpegError

    pieces, found, packets, last = [], 0, 0, b""
    remedy = "write it again as WAV or FLAC"
    try:
        with av.open(io.BytesIO(data), "r", metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioError(f"it has no sound: {remedy}")
            stream: Any = container.streams.audio[0]
            stream.codec_context.thread_count = 1  # the same bits every time
            rate, mp3 = stream.codec_context.sample_rate, container.format.name == "mp3"
            promised = _promised(container, stream)
            resampler = av.AudioResampler(format="flt")  # of any sample format; rate and channels stay
            try:
                for packet in container.demux(stream):
                    if mp3 and _XING.match(bytes(packet)):
                        continue  # a joined file's, which would be a moment of silence
                    if packet.size:
                        packets, last = packets + 1, bytes(packet) if mp3 else b""
                    for frame in packet.decode():
                        for part in resampler.resample(frame):
                            pieces.append(part.to_ndarray().reshape(-1, len(part.layout.channels)))
                            found += len(pieces[-1])
                    check_length(found / rate, longest_s)
            except FFmpegError as error:
                whole = f"its header promises {promised:.2f} s, " if promised else ""
                raise AudioError(
                    f"truncated or broken: {whole}{found / rate:.2f} s can be read: copy it again"
                ) from error
    except (FFmpegError, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        why = f"{unread}, nor FFmpeg" if unread else f"FFmpeg cannot read it ({_why(error)})"
        raise AudioError(f"{why}: {remedy}") from error
    if mp3:
        _check_mp3(data, packets, last, found, rate)
    if promised and found / rate < promised - _SLACK_S:
        raise AudioError(
            f"truncated: its header promises {promised:.2f} s, {found / rate:.2f} are there: copy it again"
        )
    return np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32), rate


def _promised(container: Any, stream: Any) -> float:
    """Seconds that the container says it holds; 0 where it says nothing, or FFmpeg guesses."""
    if container.format.name not in _PROMISES:
        return 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6


def _check_mp3(data: bytes, frames: int, last: bytes, found: int, rate: int) -> None:
    """Raises :class:`AudioError`: fewer frames than the headers of all joined files say, or a last one cut in two."""
    said = sum(int.from_bytes(match[1]) for match in _XING.finditer(data))
    whole_s, there_s = said * (1152 if rate >= 32000 else 576) / rate, found / rate
    if frames < said:
        raise AudioError(f"truncated: its header promises {whole_s:.2f} s, {there_s:.2f} are there: copy it again")
    size = _frame_bytes(last, rate)
    if len(last) < size:
        part = f"a frame of {size} bytes of which only {len(last)} are there"
        raise AudioError(f"truncated: after {there_s:.2f} s comes {part}: copy it again")


def _frame_bytes(frame: bytes, rate: int) -> int:
    """How long an MP3 frame is by its header (ISO 11172-3, 13818-3); 0 for another layer and for free bit rates."""
    if len(frame) < 4 or frame[1] >> 1 & 3 != 1:
        return 0
    first = frame[1] >> 3 & 3 == 3  # MPEG 1; else 2 or 2.5, with half the samples
    return (144 if first else 72) * 1000 * (_KBPS_1 if first else _KBPS_2)[frame[2] >> 4] // rate + (frame[2] >> 1 & 1)


def _without_tags(data: bytes) -> bytes:
    """An MP3 without the ID3 tags at its head and where files were joined; FFmpeg loses a frame to those."""
    kept, place = [], 0
    for tag in _ID3.finditer(data):
        a, b, c, d = tag[1]
        after = tag.end() + (a << 21 | b << 14 | c << 7 | d)
        if tag.start() >= place and data[after : after + 1] == b"\xff":
            kept.append(data[place : tag.start()])
            place = after
    return b"".join([*kept, data[place:]]) if place else data


def _ogg_links(data: bytes) -> Iterator[bytes]:
    """The files of which an Ogg file is joined, as a radio's recording is.

    Raises:
        AudioError: a page is cut off, or a file has no last page.
    """
    start, place, body, open_streams = 0, 0, False, set()
    while data[place : place + 4] == b"OggS" and place + 27 <= len(data):
        flags, stream, lacing = data[place + 5], data[place + 14 : place + 18], data[place + 26]
        size = 27 + lacing + sum(data[place + 27 : place + 27 + lacing])
        if place + size > len(data):
            there = f"only {len(data) - place} bytes are there"
            raise AudioError(
                f"truncated: {_position(data, place)} comes a page of {size} bytes of which {there}: copy it again"
            )
        if flags & _FIRST and body:
            _check_ended(data, place, open_streams)
            yield data[start:place]
            start, body, open_streams = place, False, set()
        body = body or not flags & _FIRST
        open_streams = open_streams - {stream} if flags & _LAST else open_streams | {stream}
        place += size
    if place + 27 > len(data) > place:
        raise AudioError(f"truncated: {_position(data, place)} comes a page that is cut off: copy it again")
    _check_ended(data, place, open_streams)
    yield data[start:]


def _check_ended(data: bytes, place: int, open_streams: set[bytes]) -> None:
    if open_streams:
        raise AudioError(
            f"truncated: it stops {_position(data, place)} without a last page: copy it again, or, where it is "
            "whole, write it again as WAV or FLAC"
        )


def _position(data: bytes, place: int) -> str:
    """Where in the sound a page begins, by the last page before it."""
    before = data.rfind(b"OggS", 0, max(place, 0))
    (granule,) = struct.unpack_from("<q", data, before + 6) if before >= 0 else (0,)
    head = data.find(b"\x01vorbis")
    rate = struct.unpack_from("<I", data, head + 12)[0] if head >= 0 else 48000  # Opus always counts at 48 kHz
    return f"after {max(granule, 0) / max(rate, 1):.2f} s"


def _joined(links: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, int]:
    """One recording of several, at the first one's rate; mono where they have different channels."""
    import soxr

    rate = links[0][1]
    same = len({wave.shape[1] for wave, _ in links}) == 1
    waves = [wave if same else mono(wave)[:, None] for wave, _ in links]
    pairs = zip(waves, links, strict=True)
    return np.concatenate([wave if r == rate else soxr.resample(wave, r, rate) for wave, (_, r) in pairs]), rate


def _why(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error).strip().rstrip(".:")
    return text.split(":")[0] or type(error).__name__
