"""Recordings made clean: formats, rates, channels, silence at the ends, and what is refused."""

import io

import numpy as np
import pytest
import soundfile

from wavalign_ext.data.prepare.audio import Limits, clean
from wavalign_ext.data.prepare.encode import fingerprint
from wavalign_ext.speech.audio import decode
from wavalign_ext.speech.waveform import AudioError

RATE = 16000


def tone(seconds: float = 0.5, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def written(wave: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=format, subtype=subtype)
    return file.getvalue()


def loudest_hz(wave: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave))


@pytest.mark.parametrize(
    ("format", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 8000),
        ("WAV", "PCM_U8", 16000),
        ("WAV", "PCM_24", 44100),
        ("WAV", "FLOAT", 48000),
        ("WAV", "DOUBLE", 22050),
        ("WAV", "ULAW", 8000),
        ("FLAC", None, 16000),
        ("OGG", "VORBIS", 44100),
        ("OGG", "OPUS", 48000),
        ("MP3", None, 44100),
        ("AIFF", "PCM_16", 32000),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_any_format_becomes_mono_at_our_rate(format: str, subtype: str | None, rate: int, channels: int) -> None:
    wave = np.repeat(tone(rate=rate)[:, None], channels, axis=1)
    samples, found = decode(written(wave, rate, format, subtype))
    out = clean(samples, found, RATE, Limits(trim_db=0))
    assert out.ndim == 1 and out.dtype == np.float32
    assert len(out) == pytest.approx(0.5 * RATE, rel=0.15)  # MP3 pads
    assert loudest_hz(out) == pytest.approx(440, abs=5)
    assert np.abs(out).max() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_16")])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.02])
def test_a_truncated_file_is_told_from_a_short_one(format: str, subtype: str, kept: float) -> None:
    whole = written(tone(), format=format, subtype=subtype)
    with pytest.raises(AudioError, match="truncated: .*promises .* are there: copy it again"):
        decode(whole[: int(len(whole) * kept)])
    decode(whole)


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3"])
def test_half_of_a_compressed_file_is_refused(format: str) -> None:
    whole = written(tone(2.0), format=format)
    with pytest.raises(AudioError, match="truncated|libsndfile cannot read it"):
        decode(whole[: len(whole) // 2])


def test_a_stream_s_header_promises_nothing() -> None:
    whole = bytearray(written(tone()))
    whole[4:8] = whole[40:44] = b"\xff\xff\xff\xff"  # as a program writes it that cannot seek back
    assert len(decode(bytes(whole))[0]) == RATE // 2


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file is empty"),
        (b"this is a letter", "libsndfile cannot read it"),
        (b"RIFF\x00\x00\x00\x00WAVE", "libsndfile cannot read it"),
    ],
)
def test_what_is_no_recording_is_refused_without_addresses_of_objects(data: bytes, why: str) -> None:
    with pytest.raises(AudioError, match=why) as caught:
        decode(data)
    assert "0x" not in str(caught.value) and "BytesIO" not in str(caught.value)


def test_a_long_recording_is_refused_by_its_header() -> None:
    with pytest.raises(AudioError, match=r"2\.0 s are more than 1: .*--max-seconds"):
        decode(written(tone(2.0)), 1)


@pytest.mark.parametrize(
    ("wave", "why"),
    [
        (np.zeros((0, 1), np.float32), "it has no samples"),
        (np.array([[0.1], [np.nan], [np.inf]], np.float32), "2 of its samples are not finite"),
        (np.zeros((RATE, 2), np.float32), r"silent \(peak 0\)"),
        (np.full((RATE, 1), 0.0005, np.float32), r"silent \(peak 0.0005\)"),
    ],
)
def test_what_holds_no_speech_is_refused(wave: np.ndarray, why: str) -> None:
    with pytest.raises(AudioError, match=why):
        clean(wave, RATE, RATE, Limits())


def test_silence_at_the_ends_goes_and_in_the_middle_stays() -> None:
    rng = np.random.default_rng(0)
    pause = (0.0005 * rng.normal(size=RATE)).astype(np.float32)
    wave = np.concatenate([pause, tone(), pause, tone(), pause])
    out = clean(wave, RATE, RATE, Limits())
    assert len(out) / RATE == pytest.approx(0.5 + 1 + 0.5 + 0.06, abs=0.002)
    np.testing.assert_array_equal(clean(out, RATE, RATE, Limits()), out)  # nothing is left to trim
    assert len(clean(wave, RATE, RATE, Limits(trim_db=0))) == len(wave)


def test_floats_beyond_full_scale_are_scaled_not_clipped() -> None:
    np.testing.assert_allclose(clean(1000 * tone(), RATE, RATE, Limits(trim_db=0)), tone() / 0.3, atol=1e-3)


def test_a_codec_s_fingerprint_follows_contents_not_paths(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / ".git").mkdir(parents=True)
        (tmp_path / name / "weights").write_text("1")
        (tmp_path / name / ".git" / "index").write_text(name)
    one, two = ({"type": "mel_vq", "path": str(tmp_path / name)} for name in ("a", "b"))
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint({**one, "codebooks": 2}) != fingerprint(one)
    (tmp_path / "b" / "weights").write_text("2")
    assert fingerprint(one) != fingerprint(two)
