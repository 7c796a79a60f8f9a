"""When two texts say the same, in any script: pairs from reports, pairs of each class, and properties."""

import json
from pathlib import Path

import pytest
from field import field
from hypothesis import given, settings
from hypothesis import strategies as st

from wavalign_ext.speech.text_normalization import (
    check_language,
    has_phrase,
    normalize_text,
    readings,
    same_text,
    separates_words,
    text_tokens,
)

PAIRS = Path(__file__).parents[2] / "fixtures" / "text_pairs.jsonl"


@pytest.mark.parametrize("pair", [*map(json.loads, PAIRS.read_text().splitlines())], ids=lambda pair: pair["reference"])
def test_reported_pairs(pair: dict) -> None:
    assert same_text(pair["said"], pair["reference"]) is not pair["differ"]


def test_the_field_s_pairs() -> None:
    for pair in map(json.loads, field("text_pairs.jsonl").read_text().splitlines()):
        assert same_text(pair["said"], pair["reference"]) is not pair["differ"], pair


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Three plus four is seven.", "three plus four is seven"),
        ("3 + 4 = 7", "three plus four is seven"),
        ("12 - 10 is 2!", "twelve minus ten is two"),
        ("The COLOUR of snow", "the color of snow"),
        ("'Hello', said the dogs' owner", "hello said the dogs owner"),
        ("wait…5", "wait five"),
        ("  \t", ""),
        ("🎵 ✅", ""),
        ("mp3 B2B 3D", "mp three b two b three d"),
        ("agent 007", "agent zero zero seven"),
        ("release 1.2.3", "release one two three"),
    ],
)
def test_normalize_text(written: str, spoken: str) -> None:
    assert normalize_text(written) == spoken


@pytest.mark.parametrize(
    ("one", "other", "language"),
    [
        # figures and words
        ("121", "one hundred and twenty-one", "en"),
        ("105", "a hundred and five", "en"),
        ("1,234,567", "one million two hundred thirty four thousand five hundred sixty seven", "en"),
        ("1\u202f000", "one thousand", "en"),
        ("99%", "ninety nine percent", "en"),
        ("3.14", "three point one four", "en"),
        (".5", "0.5", "en"),
        ("0.5", "point five", "en"),
        ("-5", "negative five", "en"),
        ("−12.5", "minus twelve point five", "en"),
        ("the 21st", "the twenty-first", "en"),
        ("on the 3rd", "on the third", "en"),
        ("in 1999", "in nineteen ninety-nine", "en"),
        ("in 2026", "in twenty twenty six", "en"),
        ("in 2026", "in two thousand twenty six", "en"),
        ("答案是21", "答案是二十一", "zh"),
        ("气温是-5度", "气温是负五度", "zh"),
        ("21です", "二十一です", "ja"),
        ("1.234,5", "eintausendzweihundertvierunddreißig Komma fünf", "de"),
        ("-21", "moins vingt-et-un", "fr"),
        ("3,5", "tres coma cinco", "es"),
        ("21 рубль", "двадцать один рубль", "ru"),
        ("5", "п’ять", "uk"),
        ("٢١", "21", "ar"),
        ("२१", "इक्कीस", "hi"),
        # forms of a character
        ("it’s", "it's", "en"),
        ("itʼs", "it＇s", "en"),
        ("п'ять", "пʼять", "uk"),
        ("“quoted” «so» 'too'", "quoted so too", "en"),
        ("ＡＢＣ　１２", "abc 12", "en"),
        ("ﬁne", "fine", "en"),
        ("Straße", "STRASSE", "de"),
        ("café", "cafe\u0301", "fr"),
        ("한국어", "한국어", "ko"),
        ("ｶﾞｷﾞ", "ガギ", "ja"),
        ("co\u00adop\u200b", "coop", "en"),
        ("☀\ufe0f sunny 4\ufe0f⃣", "sunny four", "en"),
        # spaces between characters of scripts without them
        ("今天 天气，很好！", "今天天气很好", "zh"),
        ("สวัสดี ครับ", "สวัสดีครับ", "th"),
        ("ជំរាប សួរ", "ជំរាបសួរ", "km"),
    ],
)
def test_the_same_in_two_forms(one: str, other: str, language: str) -> None:
    assert same_text(one, other, language) and same_text(other, one, language)


@pytest.mark.parametrize(
    ("one", "other", "language"),
    [
        ("สวัสดี", "ขอบคุณ", "th"),
        ("नमस्ते", "धन्यवाद", "hi"),
        ("مرحبا", "وداعا", "ar"),
        ("שלום", "תודה", "he"),
        ("γειά", "όχι", "el"),
        ("ありがとう", "おはよう", "ja"),
        ("が", "か", "ja"),
        ("ကျေးဇူး", "မင်္ဂလာ", "my"),
        ("का", "कि", "hi"),  # marks count
        ("좋아요 안녕", "좋아요안녕", "ko"),  # Korean has spaces
        ("5", "−5", "en"),
        ("气温是5", "气温是-5", "zh"),
        ("x = 5", "x = -5", "en"),
        ("-5", "5", "zu"),  # a language without number words
        ("3.5", "35", "zu"),
        ("3.5", "3 5", "zu"),
        ("-3.5", "3.5", "ru"),
        ("3½", "31/2", "en"),
        ("5²", "52", "en"),
        (".5", "5", "en"),
        ("1.5", "15", "en"),
        ("1.234", "1234", "en"),
        ("1,234", "1.234", "en"),
        ("", "", "en"),
        ("?!", "…", "en"),
        ("🎵", "🎵", "en"),
    ],
)
def test_not_the_same(one: str, other: str, language: str) -> None:
    assert not same_text(one, other, language) and not same_text(other, one, language)


def test_a_dash_is_a_sign_only_before_a_figure_and_behind_no_word() -> None:
    for text in ("covid-19", "pages 3-4", "hello - world", "- 5 apples"):
        assert "minus" not in normalize_text(text)
    for text in ("(-5)", "x=-5", "答案是-5", "12 -10"):
        assert "minus" in normalize_text(text)


def test_tokens_are_words_or_characters() -> None:
    assert text_tokens("用python编程 ok") == ["用", "python", "编", "程", "ok"]
    assert text_tokens("ที่นี่") == ["ที่", "นี่"]
    assert not separates_words("用python编程语言写代码吧") and separates_words("안녕 세상")


def test_a_phrase_is_whole_words_or_characters() -> None:
    assert has_phrase(readings("that makes 21 in all"), "twenty-one")
    assert not has_phrase(readings("seventy"), "seven") and not has_phrase(readings("york is new"), "New York")
    assert has_phrase(readings("法国的首都是巴黎"), "巴黎") and not has_phrase(readings("法国的首都是罗马"), "巴黎")
    assert not has_phrase(readings("anything"), "?")


@pytest.mark.parametrize("language", ["english", "EN", "e", "", None, "en us", 5])
def test_no_language_code_is_refused(language: object) -> None:
    with pytest.raises(ValueError, match="a code such as en"):
        check_language(language)


@pytest.mark.parametrize("language", ["en", "pt-BR", "zh_Hant", "yue", "tlh"])
def test_language_codes(language: str) -> None:
    assert check_language(language) == language and normalize_text("a", language) == "a"


LANGUAGES = st.sampled_from(["en", "de", "fr", "ru", "zh", "ja", "th", "hi", "ar", "uk", "km", "zu", "tlh"])


@settings(deadline=None)
@given(st.text(max_size=40), LANGUAGES)
def test_normalising_twice_is_normalising_once(text: str, language: str) -> None:
    once = normalize_text(text, language)
    assert normalize_text(once, language) == once
    assert once == once.strip() and "  " not in once


@settings(deadline=None)
@given(st.text(st.characters(categories=["L"]), min_size=1, max_size=8))
def test_no_letter_of_any_script_is_lost(text: str) -> None:
    assert normalize_text(text)
    assert same_text(text, text)
    assert not same_text(text, text + "q")


@settings(deadline=None)
@given(st.integers(-(10**14), 10**14), st.integers(-(10**14), 10**14))
def test_numbers_are_the_same_only_as_themselves(one: int, other: int) -> None:
    for language in ("en", "de", "zh", "th", "zu"):
        assert same_text(f"{one:,}" if language == "en" else str(one), str(one), language)
        assert same_text(str(one), str(other), language) is (one == other)


@settings(deadline=None)
@given(st.decimals(-999, 999, places=2))
def test_decimals_and_signs_count(value: object) -> None:
    assert same_text(f"{value}", f"{value}".replace(".", ","), "de")
    assert not same_text(f"{value}1", f"{value}2")
    assert not same_text(f"-{abs(value)}", f"{abs(value)}")  # pyright: ignore
