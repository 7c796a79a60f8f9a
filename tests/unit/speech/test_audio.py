"""Recordings as people have them: decoded to their end, or refused with both lengths."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from field import field

from wavalign_ext.speech.audio import decode, load_audio
from wavalign_ext.speech.waveform import AudioError, mono

RATE = 16000


def sound(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A tone in noise, float32; another for each seed."""
    t, rng = np.arange(int(seconds * rate)) / rate, np.random.default_rng(seed)
    return (0.3 * np.sin(2 * np.pi * (300 + 200 * seed) * t) + 0.03 * rng.normal(size=len(t))).astype(np.float32)


def written(seconds: float, format: str, subtype: str | None = None, rate: int = RATE, seed: int = 0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(seconds, rate, seed), rate, format=format, subtype=subtype)
    return file.getvalue()


def encoded(seconds: float, codec: str, container: str, rate: int = 48000) -> bytes:
    """By FFmpeg, for what libsndfile does not write."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray((sound(seconds, rate)[None] * 32767).astype(np.int16), "s16", "mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.codec_context.format.name, "mono", rate, stream.codec_context.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def seconds_of(data: bytes) -> float:
    wave, rate = decode(data)
    return len(wave) / rate


# --- a decoder that would stop before the file ends ------------------------------------------------------------------


def xing(says: int) -> bytes:
    """Three seconds of MP3 (86 frames) whose header says another number of frames."""
    data = bytearray(written(3, "MP3"))
    struct.pack_into(">I", data, data.index(b"Xing") + 8, says)
    return bytes(data)


def without_xing() -> bytes:
    data = written(3, "MP3")
    return data[data.index(data[:2], 4) :]


def id3(text: bytes) -> bytes:
    body = b"TIT2" + struct.pack(">IH", len(text), 0) + text
    return b"ID3\x03\0\0" + bytes([0, 0, len(body) >> 7, len(body) & 127]) + body


JOINED = {
    "VBR without its header": (without_xing, 3.0),
    "Xing says 10 frames": (lambda: xing(10), 3.0),
    "Xing says 60 frames": (lambda: xing(60), 3.0),
    "two MP3": (lambda: written(3, "MP3") + written(2, "MP3", seed=1), 5.0),
    "three MP3": (lambda: b"".join(written(s, "MP3", seed=s) for s in (1, 2, 3)), 6.0),
    "two MP3, each with an ID3 tag": (
        lambda: id3(b"one") + written(2, "MP3") + id3(b"x" * 300) + written(2, "MP3"),
        4.0,
    ),
    "MP3 with a tag at its end": (lambda: written(3, "MP3") + b"TAG" + b"\0" * 125, 3.0),
    "chained Vorbis": (lambda: written(3, "OGG", "VORBIS") + written(2, "OGG", "VORBIS", seed=1), 5.0),
    "chained Vorbis of two rates": (lambda: written(2, "OGG", "VORBIS") + written(2, "OGG", "VORBIS", 22050), 4.0),
    "chained Opus": (lambda: written(3, "OGG", "OPUS") + written(1, "OGG", "OPUS") + written(1, "OGG", "OPUS"), 5.0),
    "joined FLAC": (lambda: written(3, "FLAC") + written(2, "FLAC", seed=1), 5.0),
}


@pytest.mark.parametrize(("make", "seconds"), JOINED.values(), ids=JOINED)
def test_a_file_is_decoded_to_its_end(make: Callable[[], bytes], seconds: float) -> None:
    wave, rate = decode(make())
    assert len(wave) / rate == pytest.approx(seconds, abs=0.25)  # what encoders put before and after the sound
    assert np.abs(wave[-rate // 2 :]).max() > 0.2 and np.abs(wave[: rate // 2]).max() > 0.2


CUT = {
    "MP3 in a frame": lambda: written(3, "MP3")[:6000],
    "MP3 whose header says more": lambda: xing(900),
    "MP3 without a header": lambda: without_xing()[:-100],
    "the second of two MP3": lambda: written(3, "MP3") + written(2, "MP3")[:-3000],
    "Vorbis in a page": lambda: written(3, "OGG", "VORBIS")[:-300],
    "Opus in a page": lambda: written(3, "OGG", "OPUS")[:-3000],
    "Opus in the header of a page": lambda: (data := written(3, "OGG", "OPUS"))[: data.rindex(b"OggS") + 9],
    "Vorbis after a page": lambda: (data := written(3, "OGG", "VORBIS"))[: data.rindex(b"OggS")],
    "Opus after a page, and one more": lambda: (
        (data := written(3, "OGG", "OPUS"))[: data.rindex(b"OggS")] + written(2, "OGG", "OPUS")
    ),
    "FLAC": lambda: written(3, "FLAC")[:-5000],
    "GSM": lambda: written(3, "WAV", "GSM610")[:-1000],
    "AAC": lambda: encoded(3, "aac", "adts")[:-200],
    "WebM": lambda: (data := encoded(3, "libopus", "webm"))[: len(data) // 2],
}


@pytest.mark.parametrize("make", CUT.values(), ids=CUT)
def test_a_file_that_was_cut_is_named_with_its_lengths(make: Callable[[], bytes]) -> None:
    with pytest.raises(AudioError, match=r"truncated.*\d.*copy it again") as caught:
        decode(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["VARIABLE_nohdr.mp3", "vbr_lies_short.mp3"])
def test_field_mp3_is_decoded_to_its_end(name: str) -> None:
    data = field(f"audio/{name}").read_bytes()
    assert seconds_of(data) == pytest.approx({"V": 21.1, "v": 7.66}[name[0]], abs=0.1)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert file.frames / file.samplerate < 0.7 * seconds_of(data)  # where libsndfile stops


# --- files without a length ------------------------------------------------------------------------------------------


def streamed_wav(riff: int, data_size: int, subtype: str = "PCM_16") -> bytes:
    data = bytearray(written(2, "WAV", subtype))
    place = data.index(b"data") + 4
    data[4:8], data[place : place + 4] = struct.pack("<I", riff), struct.pack("<I", data_size)
    return bytes(data)


def endless_flac(seconds: float, rate: int = RATE) -> bytes:
    data = bytearray(written(seconds, "FLAC", rate=rate))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        streamed_wav(0, 0),
        streamed_wav(36, 0),
        streamed_wav(0xFFFFFFFF, 0, "PCM_24"),
        streamed_wav(0xFFFFFFFF, 0xFFFFFFFF, "FLOAT"),
        streamed_wav(0x7FFFFFFF, 0x7FFFFFDB, "ULAW"),
        endless_flac(2),
        endless_flac(2, 44100),
        endless_flac(2, 8000),
    ],
)
def test_a_file_of_unknown_length_is_decoded_whole(data: bytes) -> None:
    assert seconds_of(data) == pytest.approx(2, abs=0.001)


@pytest.mark.parametrize("cut", [100, 5000, 20000])
def test_a_flac_of_unknown_length_may_not_end_in_a_frame(cut: int) -> None:
    with pytest.raises(AudioError, match=r"truncated or broken: \d\.\d\d s can be read"):
        decode(endless_flac(2)[:-cut])


def test_a_file_of_unknown_length_is_not_decoded_beyond_the_limit() -> None:
    with pytest.raises(AudioError, match=r"s are more than 1: cut it"):
        decode(endless_flac(30), 1)


@pytest.mark.parametrize("name", ["flac_unknown_length.flac", "stream_zero.wav"])
def test_field_files_of_unknown_length_are_decoded(name: str) -> None:
    assert seconds_of(field(f"audio/{name}").read_bytes()) == pytest.approx(1.5, abs=0.01)


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "subtype", "rate"),
    [
        ("WAV", "GSM610", 8000),
        ("WAV", "G721_32", 8000),
        ("AU", "G721_32", 16000),
        ("AU", "G723_24", 8000),
        ("AIFF", "GSM610", 8000),
        ("WAV", "NMS_ADPCM_32", 8000),
        ("WAV", "IMA_ADPCM", 22050),
        ("CAF", "ALAC_16", 44100),
    ],
)
def test_telephone_and_other_codecs_are_decoded(container: str, subtype: str, rate: int) -> None:
    wave, found = decode(written(2, container, subtype, rate))
    assert found == rate and len(wave) / rate == pytest.approx(2, abs=0.05)
    spectrum = np.abs(np.fft.rfft(mono(wave)))
    assert spectrum.argmax() * rate / len(wave) == pytest.approx(300, abs=5)


@pytest.mark.parametrize(("codec", "container"), [("aac", "adts"), ("aac", "mp4"), ("libopus", "webm")])
def test_what_phones_and_browsers_write_is_decoded(codec: str, container: str) -> None:
    assert seconds_of(encoded(2, codec, container)) == pytest.approx(2, abs=0.06)


def test_field_gsm_is_decoded() -> None:
    assert seconds_of(field("audio/GSM610.wav").read_bytes()) == pytest.approx(1.5, abs=0.03)


def test_flac_gives_the_samples_that_were_written() -> None:
    whole = np.round(sound(1) * 32768).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, whole, RATE, format="FLAC")
    np.testing.assert_array_equal(decode(file.getvalue())[0][:, 0] * 32768, whole)


# --- RIFF whose header is wrong --------------------------------------------------------------------------------------


def half_said() -> bytes:
    data = bytearray(written(2, "WAV"))
    data[40:44] = struct.pack("<I", 32000)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "lengths"),
    [
        (half_said(), r"promises 1\.00 s, the file holds about 2\.00"),
        (written(1, "WAV") + written(2, "WAV"), r"promises 1\.00 s, the file holds about 3\.00"),
        (written(1, "WAV") + written(1, "WAV")[44:], r"promises 1\.00 s, the file holds about 2\.00"),
    ],
)
def test_a_wav_that_goes_on_after_its_end_is_named_with_both_lengths(data: bytes, lengths: str) -> None:
    with pytest.raises(AudioError, match=lengths):
        decode(data)


@pytest.mark.parametrize(
    "tail", [b"LIST" + struct.pack("<I", 2000) + b"INFO" + bytes(1996), bytes(5000), b"odd bytes of an editor"]
)
def test_a_wav_may_have_other_chunks_and_padding_at_its_end(tail: bytes) -> None:
    assert seconds_of(written(1, "WAV") + tail) == 1


# --- channels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"), [(1.0, -1.0), (0.8, -1.0), (-0.6, 0.5), (1.0, -0.99)], ids=["equal", "right", "left", "nearly"]
)
def test_channels_in_antiphase_are_heard_by_the_louder(left: float, right: float) -> None:
    wave = np.stack([left * sound(1), right * sound(1)], 1)
    louder = left if abs(left) >= abs(right) else right
    np.testing.assert_array_equal(mono(wave), np.float32(louder) * sound(1))


@pytest.mark.parametrize(("left", "right"), [(1.0, 1.0), (1.0, 0.0), (0.7, 0.4)])
def test_other_channels_are_mixed(left: float, right: float) -> None:
    wave = np.stack([left * sound(1), right * sound(1, seed=3)], 1)
    np.testing.assert_allclose(mono(wave), wave.mean(1), atol=1e-7)


def test_field_antiphase_is_heard_by_rewards_too(tmp_path: Path) -> None:
    wave = load_audio(field("audio/antiphase.wav"), RATE)
    assert np.abs(wave).max() == pytest.approx(0.62, abs=0.01)


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nul\0.wav", "gone.wav", "lone\ud83d.wav", ".", "x" * 5000])
def test_a_path_that_no_file_has_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_audio(f"{tmp_path}/{name}", RATE)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
