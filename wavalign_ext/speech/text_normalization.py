"""When two texts say the same: normalisation by Unicode, in any language, with figures read out as words.

Words are compared where a script separates them, characters where it does not. The number words come from the Unicode
CLDR (package unicode-rbnf); where it lacks a language, figures stay figures, with sign and decimals.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import regex
from unicode_rbnf import FormatPurpose, RbnfEngine
from unicode_rbnf.engine import RbnfError

# Scripts that write words without spaces between them.
_UNSEPARATED = (
    "Han Hiragana Katakana Bopomofo Thai Lao Khmer Myanmar Tai_Le New_Tai_Lue Tai_Tham Tai_Viet Javanese Balinese"
)
_CHARACTER = "[" + "".join(rf"\p{{scx={script}}}" for script in _UNSEPARATED.split()) + r"]"
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼʹ´`′՚ꞌ", "'"))
_MINUSES = str.maketrans(dict.fromkeys("−‐‑‒–—⁻", "-"))
_INVISIBLE = regex.compile(r"[\p{Cf}\p{Variation_Selector}]")
_NARROW_GROUP = regex.compile(r"(?<=\d)[\u00a0\u2009\u202f٬](?=\d{3}(?!\d))")  # 1 000 000
_CHARACTERS = regex.compile(rf"(?=[\p{{L}}\p{{N}}]){_CHARACTER}\p{{M}}*")
_GAP = regex.compile(rf"(?<={_CHARACTER}\p{{M}}*) (?={_CHARACTER})")
# What is left of a text: a figure with its sign and decimals, or a word with the apostrophes inside it.
_TOKEN = regex.compile(r"(?<!\S)-?\d+(?:\.\d+)?(?!\S)|[\p{L}\p{N}][\p{L}\p{N}\p{M}]*(?:'\p{L}[\p{L}\p{N}\p{M}]*)*")
# A dash is a sign where no word or figure stands directly before it: -5, not 3-5 or covid-19.
_FIGURE = regex.compile(
    rf"((?<![[\p{{L}}\p{{N}}]--{_CHARACTER}])-)?(\d+(?:[.,]\d+)*)(?:(st|nd|rd|th)(?!\p{{L}}))?", regex.VERSION1
)
_LONGEST = 15  # digits of a number that is read out as one; longer ones are read digit by digit

# Languages whose decimals stand behind a comma (CLDR, numbers/symbols/decimal); in all others a point.
_DECIMAL_COMMA = set(
    "af az be bg bs ca cs da de el es et eu fi fr gl hr hu hy id is it ka kk ky lt lv mk nb nl nn no pl pt ro ru sk sl"
    " sq sr sv tr uk uz vi".split()
)
_CLDR_NAMES = {"nb": "no", "tl": "fil"}
_ENGLISH = {
    "+": " plus ",
    "=": " is ",
    "%": " percent ",
    "&": " and ",
    "×": " times ",
    "÷": " divided by ",
    "colour": "color",
}


def check_language(language: Any) -> str:
    """``language`` itself. Raises ValueError: it is no language code."""
    if not isinstance(language, str) or not re.fullmatch(r"[a-z]{2,3}([-_][A-Za-z0-9]{2,8})*", language):
        raise ValueError(f"language={language!r} is not allowed: a code such as en, zh or pt-BR")
    return language


def normalize_text(text: str, language: str = "en") -> str:
    """Lower case, figures as words, symbols as spoken, no punctuation; "" for a text without letters and figures.

    Letters, marks and digits of all scripts stay (NFKC, case folded), apostrophes inside words too, in one form. A
    minus before a figure and its decimals are read out. Characters of scripts without spaces stand together.
    """
    return _normalized(text, language, years=False)


def readings(text: str, language: str = "en") -> tuple[str, ...]:
    """The ways in which ``text`` may be read out: in English 1999 is a number or a year; else one way."""
    found = (_normalized(text, language, years=False), _normalized(text, language, years=True))
    return found if found[0] != found[1] else found[:1]


def text_tokens(normalized: str) -> list[str]:
    """What is compared: words, and each character of scripts that do not separate words."""
    return _CHARACTERS.sub(r" \g<0> ", normalized).split()


def same_text(said: str, wanted: str, language: str = "en") -> bool:
    """Whether both say the same in some reading. A text without letters and figures says nothing: never the same."""
    return bool(set(filter(None, readings(said, language))) & set(readings(wanted, language)))


def has_phrase(said: Sequence[str], phrase: str, language: str = "en") -> bool:
    """Whether any of the readings ``said`` has ``phrase`` as a run of whole words (characters, see above)."""
    spaced = [f" {' '.join(text_tokens(text))} " for text in said]
    wanted = [" ".join(text_tokens(text)) for text in readings(phrase, language)]
    return any(f" {words} " in text for words in wanted if words for text in spaced)


def separates_words(normalized: str) -> bool:
    """Whether most of a text's letters belong to scripts that put spaces between words."""
    letters = regex.findall(r"\p{L}", normalized)
    return 2 * len(_CHARACTERS.findall(normalized)) <= len(letters)


def _normalized(text: str, language: str, years: bool) -> str:
    spoken = _spoken(language)
    text = _NARROW_GROUP.sub("", text)
    # A fraction or a raised digit is a number of its own: 3½ is not 31/2, 5² is not 52.
    text = "".join(f" {c} " if unicodedata.category(c) == "No" else c for c in text.translate(_APOSTROPHES))
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = _INVISIBLE.sub("", text).translate(_APOSTROPHES).translate(_MINUSES).replace("٫", ".")
    text = regex.sub(r"\p{Nd}", lambda digit: str(unicodedata.decimal(digit[0])), text)
    if spoken is not None and spoken.language == "en":
        for symbol, word in _ENGLISH.items():
            text = text.replace(symbol, word)
    text = re.sub(r"(?<=\d) - (?=\d)", " -", text)  # a difference, read like a sign
    text = re.sub(r"(?<![\w.,])[.](?=\d)", "0.", text)
    comma = language.replace("_", "-").split("-")[0] in _DECIMAL_COMMA
    text = _FIGURE.sub(lambda found: _read_out(found, spoken, comma, years), text)
    text = " ".join(_TOKEN.findall(text))
    if spoken is not None:
        text = spoken.tidy(text)
    return _GAP.sub("", text)


def _read_out(found: regex.Match[str], spoken: "_Spoken | None", comma: bool, years: bool) -> str:
    """A figure in words, or in one form where the language has none."""
    sign, figure, ordinal = (found[1] or "", found[2], found[3] or "")
    numbers = _numbers(figure, comma)
    if spoken is None:
        return f" {' '.join([sign + numbers[0], *numbers[1:]])}{ordinal} "
    words = []
    for number in numbers:
        whole, _, decimals = number.partition(".")
        alone = len(numbers) == 1 and not decimals
        if alone and ordinal and spoken.language == "en":
            words.append(spoken.ordinal(whole))
        elif alone and years and "," not in figure:
            words.append(spoken.year(whole))
        else:
            words.append(spoken.number(whole, decimals))
    return f" {spoken.minus if sign else ''} {' '.join(words)} "


def _numbers(figure: str, comma: bool) -> list[str]:
    """A figure's numbers, each as digits with at most one point: "1,234.5" is one, "1.2.3" is three."""
    group, point = (".", ",") if comma else (",", ".")
    grouped = re.fullmatch(rf"(\d{{1,3}}(?:\{group}\d{{2,3}})*\{group}\d{{3}})(?:\{point}(\d+))?", figure)
    if grouped and not figure.startswith("0"):
        return [grouped[1].replace(group, "") + (f".{grouped[2]}" if grouped[2] else "")]
    parts = re.split(r"[.,]", figure)
    if len(parts) == 2:
        return [".".join(parts)]
    if len(parts) > 2 and re.fullmatch(rf"[1-9]\d{{0,2}}(\{point}\d{{3}})+", figure):  # the other custom of grouping
        return ["".join(parts)]
    return parts


class _Spoken:
    """How one language reads numbers out."""

    def __init__(self, language: str, engine: RbnfEngine) -> None:
        self.language, self._engine = language, engine
        five = self._say(5)
        self._tidier: tuple[tuple[re.Pattern[str], str], ...] = ()
        self.minus = self._say(-5).removesuffix(five).strip()
        half, nil = self._say(0.5), self._say(0)
        inside = half.removeprefix(nil).removesuffix(five)
        self._point = inside if len(inside) == len(half) - len(nil) - len(five) else ""
        if language == "en":
            ones = "|".join(self._say(number) for number in range(20))
            tens = "|".join(self._say(number) for number in range(20, 100, 10))
            follows = rf"(?=(?:{ones}|{tens}|point)\b)"
            large = "(?:hundred|thousand|million|billion|trillion)"
            self._tidier = (
                (re.compile(rf"\bnegative {follows}"), f"{self.minus} "),
                (re.compile(rf"\ba (?={large}\b)"), "one "),
                (re.compile(rf"\b({large}) and {follows}"), r"\1 "),
                (re.compile(r"\bzero (?=point\b)"), ""),
            )

    def number(self, whole: str, decimals: str = "") -> str:
        """A cardinal number, its decimals digit by digit; figures where the word for the point is unknown."""
        if decimals and not self._point:
            return f"{whole}.{decimals}"
        digits = " ".join(self._say(int(digit)) for digit in decimals)
        return self._whole(whole) + (f"{self._point}{digits}" if decimals else "")

    def ordinal(self, whole: str) -> str:
        """21st is "twenty first"."""
        return self._whole(whole, FormatPurpose.ORDINAL)

    def year(self, whole: str) -> str:
        """1999 is "nineteen ninety nine" in English; a number where it cannot be a year."""
        if self.language != "en" or not 1100 <= int(whole[:_LONGEST]) < 2100 or len(whole) != 4:
            return self.number(whole)
        return self._whole(whole, FormatPurpose.YEAR)

    def tidy(self, text: str) -> str:
        """One form for what English says in two: "two hundred and five", "negative five"."""
        for pattern, instead in self._tidier:
            text = pattern.sub(instead, text)
        return text

    def _whole(self, digits: str, purpose: FormatPurpose = FormatPurpose.CARDINAL) -> str:
        if len(digits) > _LONGEST or (len(digits) > 1 and digits[0] == "0"):
            return " ".join(self._say(int(digit)) for digit in digits)
        try:
            return self._say(int(digits), purpose)
        except RbnfError:  # beyond a language's rules
            return digits

    def _say(self, number: float, purpose: FormatPurpose = FormatPurpose.CARDINAL) -> str:
        text = self._engine.format_number(number, purpose).text
        text = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
        return _INVISIBLE.sub("", text).replace("-", " ")


@cache
def _spoken(language: str) -> _Spoken | None:
    """The number words of a language, None where the library has none."""
    code = language.replace("-", "_")
    base = code.split("_")[0]
    known = set(RbnfEngine.get_supported_languages())
    name = next((name for name in (code, base, _CLDR_NAMES.get(base)) if name in known), None)
    try:
        return _Spoken(base, RbnfEngine.for_language(name)) if name else None
    except RbnfError:  # of a language without rules for negative numbers
        return None
