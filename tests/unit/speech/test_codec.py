"""Codecs: fitted codebooks there and back, loading by type, and audio files."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from wavalign_ext.pocket.fit import fit_mel_vq, fit_units
from wavalign_ext.speech.audio import load_audio
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.codecs.base import register_codec
from wavalign_ext.speech.codecs.fitted import MelVQ

RATE = 16000


def tone(frequency: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def loudest_hz(wave: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codecs")
    rng = np.random.default_rng(0)
    waves = [tone(f) for f in (220.0, 440.0, 880.0)] + [rng.normal(0, 0.1, RATE).astype(np.float32)]
    fit_mel_vq(waves, path / "codec", seed=0, codes=16)
    fit_units(waves, path / "units", seed=0, units=16)
    return path


@pytest.fixture(scope="module")
def mel_vq(folder: Path) -> MelVQ:
    codec = load_codec({"type": "mel_vq", "path": folder / "codec"})
    assert isinstance(codec, MelVQ)
    return codec


@pytest.mark.parametrize("frequency", [220.0, 440.0, 880.0])
def test_a_round_trip_keeps_the_pitch(mel_vq: MelVQ, frequency: float) -> None:
    heard = mel_vq.decode(mel_vq.encode(tone(frequency)))
    assert heard.dtype == np.float32 and np.isfinite(heard).all()
    assert loudest_hz(heard) == pytest.approx(frequency, abs=RATE / MelVQ.N_FFT)


def test_rates_and_sizes_are_as_stated(mel_vq: MelVQ) -> None:
    codes = mel_vq.encode(tone(440.0, 3.0))
    assert len(codes) == pytest.approx(3.0 * mel_vq.frame_rate, abs=1)
    assert len(mel_vq.decode(codes)) == pytest.approx(len(codes) / mel_vq.frame_rate * mel_vq.sample_rate, abs=1)
    assert (mel_vq.sample_rate, mel_vq.codebook_size) == (RATE, 16)
    assert all(0 <= code < 16 for code in codes)


def test_decoding_repeats_itself_and_leaves_the_random_state_alone(mel_vq: MelVQ) -> None:
    codes = mel_vq.encode(tone(440.0))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = mel_vq.decode(codes)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    np.testing.assert_array_equal(first, mel_vq.decode(codes))


def test_no_codes_decode_to_silence_of_no_length(mel_vq: MelVQ) -> None:
    assert mel_vq.decode([]).shape == (0,)


@pytest.mark.parametrize("samples", [0, 1, 599])
def test_a_wave_shorter_than_one_code_can_be_encoded(mel_vq: MelVQ, samples: int) -> None:
    assert len(mel_vq.encode(np.zeros(samples, dtype=np.float32))) <= 1


@pytest.mark.parametrize("code", [-1, 16])
def test_a_code_out_of_range_is_named(mel_vq: MelVQ, code: int) -> None:
    with pytest.raises(ValueError, match=rf"code {code} .*0 to 15"):
        mel_vq.decode([0, code])


def test_units_follow_the_sound_not_its_loudness(folder: Path) -> None:
    units = load_codec({"type": "units", "path": folder / "units"})
    wave = np.concatenate([tone(220.0, 0.5), tone(880.0, 0.5)])
    codes = units.encode(wave)
    assert len(codes) == pytest.approx(units.frame_rate, abs=1)
    assert codes[3] != codes[-4]
    # Twice as loud: the same units but at the edges, where the log's floor shows.
    same = [a == b for a, b in zip(codes, units.encode(2 * wave), strict=True)]
    assert sum(same) >= len(same) - 4


def test_units_say_that_they_cannot_decode(folder: Path) -> None:
    with pytest.raises(ValueError, match="'units' cannot decode"):
        load_codec({"type": "units", "path": folder / "units"}).decode([1])


def test_an_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'mimi2'.*mel_vq.*units"):
        load_codec({"type": "mimi2"})


def test_a_registered_codec_loads_and_its_name_is_taken(registries: None) -> None:
    @register_codec("test_codec")
    class Fixed(MelVQ):
        def __init__(self, size: int) -> None:
            self.codebook_size = size

    assert load_codec({"type": "test_codec", "size": 3}).codebook_size == 3
    with pytest.raises(ValueError, match="'test_codec' is registered already"):
        register_codec("test_codec")(Fixed)


def test_a_folder_without_a_codec_or_with_another_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no codec\.json"):
        load_codec({"type": "mel_vq", "path": tmp_path})
    with pytest.raises(ValueError, match="holds a 'units' codec"):
        load_codec({"type": "mel_vq", "path": folder / "units"})
    assert json.loads((folder / "codec" / "codec.json").read_text())["sample_rate"] == RATE


# --- audio files ----------------------------------------------------------------------------------------------------


def test_stereo_at_another_rate_becomes_mono_at_ours(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(440.0, 0.5, 44100), np.zeros(22050, np.float32)], 1), 44100)
    wave = load_audio(path, RATE)
    assert wave.ndim == 1 and wave.dtype == np.float32
    assert len(wave) == pytest.approx(RATE / 2, abs=2)
    assert loudest_hz(wave) == pytest.approx(440.0, abs=3)
    assert np.abs(wave).max() == pytest.approx(0.15, abs=0.02)  # the mean of a tone and silence


def test_unusable_audio_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    text, empty, broken = tmp_path / "text.wav", tmp_path / "empty.wav", tmp_path / "broken.wav"
    text.write_text("no audio")
    soundfile.write(empty, np.zeros(0, np.float32), RATE)
    soundfile.write(broken, np.array([0.1, np.nan], np.float32), RATE, subtype="FLOAT")
    for path, why in ((tmp_path / "none.wav", "cannot be read"), (text, "cannot be read"), (empty, "is empty")):
        with pytest.raises(ValueError, match=rf"{path.name}.*{why}"):
            load_audio(path, RATE)
    with pytest.raises(ValueError, match=r"broken\.wav.*not finite"):
        load_audio(broken, RATE)
