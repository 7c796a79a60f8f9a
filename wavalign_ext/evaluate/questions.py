"""A question of a set, whatever file it came from, and what is right."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import regex

from wavalign_ext.speech.asr import word_error_rate
from wavalign_ext.speech.text_normalization import has_phrase, normalize_text, readings

CHOICE, ANSWER, REPEAT, OPEN = "choice", "answer", "repeat", "open"
TASKS = (CHOICE, ANSWER, REPEAT, OPEN)
RUBRIC_REFUSAL = "refusal"  # what is right is to decline

# "the answer is B", "option (b)", "I would choose **B**", "答案是B", not "the answer is a bird"; or an answer that is
# a letter alone, or begins with one.
_NAMED = regex.compile(
    r"(?:answers?|option|choice|choose|select|pick|选项|答案)(?:\s+(?:is|would be|should be|option|to be))*"
    r"[\s是选:：\"'‘“*(（]*\b?([B-Z]|(?-i:A)|a(?!\s+\p{L}))(?![\p{L}'’])",
    regex.IGNORECASE,
)
_ALONE = regex.compile(r"^[\s\"'“*(（]*([A-Za-z])(?:[\s\"'”*]*$|[.):：）,]|\*\*)")


@dataclass(frozen=True)
class Question:
    """What is asked, in sound where ``audio`` is (a path, a file's bytes, or what datasets' Audio holds), and ``text``.

    ``references`` are right answers, any of which will do; of a choice, its letter. ``keywords`` are words that a right
    answer has, ``graded`` texts with what each is worth to the reward term of that name. ``prompt`` holds the messages
    of a row that ``wavalign prepare`` has encoded, ``features`` its feature files. ``answer_audio`` is a recording of a
    right answer, relative to the set's root as ``audio`` is.
    """

    id: str
    category: str
    task: str
    text: str | None = None
    audio: Any = None
    references: tuple[str, ...] = ()
    rubric: str = ""
    context: str = ""
    keywords: tuple[str, ...] = ()
    graded: tuple[tuple[str, float], ...] = ()
    prompt: tuple[Mapping[str, Any], ...] = ()
    features: tuple[str, ...] = ()
    answer_audio: str | None = None


def chosen_letter(text: str) -> str | None:
    """The letter of a choice that an answer names, in upper case; None where it names none, or several."""
    named = {found.upper() for found in _NAMED.findall(text)}
    alone = _ALONE.match(text)
    letters = named or ({alone[1].upper()} if alone else set())
    return letters.pop() if len(letters) == 1 else None


def right(question: Question, text: str, language: str = "en") -> float | None:
    """How right an answer's text is by the set's own rule, 0 to 1; None where only a judge can tell.

    A choice: its letter. An answer: all of the keywords are in it where the question has some, otherwise one of the
    references, whole, in whatever words around. A repetition: 1 − word error rate, at least 0.
    """
    if question.task == OPEN or not (question.references or question.keywords):
        return None
    if question.task == ANSWER and question.keywords:
        said = readings(text, language)
        return float(all(has_phrase(said, word, language) for word in question.keywords))
    if question.task == CHOICE:
        return float(chosen_letter(text) == question.references[0].strip().upper()[:1])
    if question.task == REPEAT:
        return max(0.0, 1.0 - min(word_error_rate(reference, text, language) for reference in question.references))
    said = readings(text, language)
    wanted = [reference for reference in question.references if normalize_text(reference, language)]
    return float(any(has_phrase(said, reference, language) for reference in wanted)) if wanted else None
