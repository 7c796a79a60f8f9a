"""Terms that need no network: is the text right, does the speech say it, was the layout kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import jiwer

from wavalign_ext.rewards.answer import SpokenAnswer
from wavalign_ext.rewards.models import ModelThread, SentenceEmbedder
from wavalign_ext.rewards.registry import Scale, TermFailed, on_scale, register_term
from wavalign_ext.speech.asr import error_rate_name, load_recognizer, word_error_rate
from wavalign_ext.speech.text_normalization import (
    check_language,
    has_phrase,
    normalize_text,
    readings,
    same_text,
    text_tokens,
)

MODES = ("partial", "exact", "keywords", "embedding")


@register_term("semantic")
class Semantic:
    """The text against the reference: right is the top of the scale; wrong is at most its middle.

    Right is, after normalisation, the reference itself; with keywords also a text that has every one of them, each as a
    whole word or run of words. Keywords are the row's (``extra_info.keywords``), else the recipe's ``keywords``.
    Words are characters where a script does not separate words; figures are read out in ``language``.
    What a text that is not right gets depends on ``mode``:

    - ``partial``: half of the share of reference words that it has in order, so that an answer which only repeats the
      question never gets beyond the middle.
    - ``exact``: the bottom.
    - ``keywords``: half of the share of keywords that it has; only keywords make it right. Their order and what stands
      between them do not count: choose words that a wrong answer would not have.
    - ``embedding``: half of the cosine similarity of all-MiniLM-L6-v2. It cannot tell right from wrong ("seven" and
      "eight" are .9 alike), so it only grades within a half: a text with all keywords gets the upper half by it.
    """

    MOST_FOR_WRONG = 0.5

    def __init__(self, scale: Scale, mode: str = "partial", keywords: Sequence[str] = (), language: str = "en") -> None:
        if mode not in MODES:
            raise ValueError(f"semantic mode={mode!r} is not known: one of {', '.join(MODES)}")
        if isinstance(keywords, str) or not all(normalize_text(str(word)) for word in keywords):
            raise ValueError(f"semantic keywords={keywords!r} is not allowed: a list of words")
        if keywords and mode not in ("keywords", "embedding"):
            raise ValueError(f"semantic mode={mode!r} does not look at keywords: use mode keywords or embedding")
        self.scale, self.mode, self.keywords = scale, mode, tuple(map(str, keywords))
        self.language = check_language(language)
        self._embedder = SentenceEmbedder("semantic") if mode == "embedding" else None
        self._thread = ModelThread()

    async def score(self, answer: SpokenAnswer) -> float:
        """See the class.

        Raises:
            TermFailed: the reference has no words; in mode keywords, neither row nor recipe has any.
        """
        if self.mode == "keywords":
            return on_scale(self._keyword_share(answer), self.scale)
        said, wanted = (normalize_text(text, self.language) for text in (answer.text, answer.reference_text))
        if not wanted:
            raise TermFailed(f"semantic: the reference {answer.reference_text[:40]!r} has no words to compare with")
        if same_text(answer.text, answer.reference_text, self.language):
            return self.scale[1]
        if not said or self.mode == "exact":
            return self.scale[0]
        if self._embedder is None:
            return on_scale(self.MOST_FOR_WRONG * self._share_in_order(answer), self.scale)
        alike = max(0.0, await self._thread.call(self._embedder.similarity, wanted, said))
        answer.notes["similarity"] = alike
        right = bool(answer.keywords or self.keywords) and self._keyword_share(answer) == 1
        least = self.MOST_FOR_WRONG if right else 0.0
        return on_scale(least + self.MOST_FOR_WRONG * alike, self.scale)

    def _share_in_order(self, answer: SpokenAnswer) -> float:
        """Words of the reference that the text has in order, over the words of the longer one; of the best reading."""
        shares = []
        for wanted in map(text_tokens, readings(answer.reference_text, self.language)):
            for said in map(text_tokens, readings(answer.text, self.language)):
                hits = jiwer.process_words(" ".join(wanted), " ".join(said)).hits
                shares.append(hits / max(len(wanted), len(said)))
        return max(shares)

    def _keyword_share(self, answer: SpokenAnswer) -> float:
        """1 when every keyword is in the text, else at most :attr:`MOST_FOR_WRONG`."""
        keywords = [str(word) for word in answer.keywords or self.keywords]
        if not keywords or not all(normalize_text(word, self.language) for word in keywords):
            raise TermFailed("semantic: no keywords: give the row extra_info.keywords, or the term keywords")
        said = readings(answer.text, self.language)
        found = sum(has_phrase(said, word, self.language) for word in keywords)
        return 1.0 if found == len(keywords) else self.MOST_FOR_WRONG * found / len(keywords)


@register_term("graded")
class Graded:
    """The text against answers of different worth, which the row lists: ``extra_info.graded``, [{text, score}, ...].

    The score of the listed answer that it equals after normalisation; ``loose`` for a text with all of the row's
    ``extra_info.keywords`` in other words, where that is given; else the bottom of the scale.
    """

    def __init__(self, scale: Scale, loose: float | None = None, language: str = "en") -> None:
        if loose is not None and not scale[0] <= loose <= scale[1]:
            raise ValueError(f"graded loose={loose!r} is not allowed: a number in [{scale[0]}, {scale[1]}]")
        self.scale, self.loose, self.language = scale, loose, check_language(language)

    async def score(self, answer: SpokenAnswer) -> float:
        """Notes ``right``: 1 for a listed answer. Raises :class:`TermFailed`: the row lists none."""
        if not answer.graded:
            raise TermFailed("graded: the row lists no answers: give it extra_info.graded, [{text, score}, ...]")
        found = [score for text, score in answer.graded if same_text(answer.text, text, self.language)]
        answer.notes["right"] = float(bool(found))
        if found:
            return max(found)
        said = readings(answer.text, self.language)
        if (
            self.loose is not None
            and answer.keywords
            and all(has_phrase(said, w, self.language) for w in answer.keywords)
        ):
            return self.loose
        return self.scale[0]


@register_term("asr_agreement")
class AsrAgreement:
    """The speech against the text of the same answer: 1 − word error rate, on the scale.

    It is the character error rate where the text's script does not separate words. ``language`` is that in which
    figures are read out. Text without speech, or speech without text, is a judgement (the bottom of the scale), not a
    failure.
    """

    def __init__(self, scale: Scale, recognizer: Mapping[str, Any], language: str = "en") -> None:
        self.scale, self.language = scale, check_language(language)
        self.recognizer = load_recognizer(recognizer)
        self._thread = ModelThread()

    async def score(self, answer: SpokenAnswer) -> float:
        """Transcribe in a thread; notes ``transcript``, and ``wer`` or ``cer`` by what was counted."""
        name = error_rate_name(answer.text)
        if not answer.has_speech or not normalize_text(answer.text, self.language):
            answer.notes[name] = 1.0
            return self.scale[0]
        transcript = await self._thread.call(self.recognizer.transcribe, answer.wave, answer.sample_rate)
        error = word_error_rate(answer.text, transcript, self.language)
        answer.notes.update({"transcript": transcript, name: error})
        return on_scale(1 - error, self.scale)


@register_term("format")
class Format:
    """Share of kept promises: the response ended uncut, has text, has speech, and broke no rule of its layout."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    async def score(self, answer: SpokenAnswer) -> float:
        """A quarter of the scale for each."""
        ended = answer.ended and not answer.truncated
        kept = (ended, bool(answer.text), bool(answer.speech_codes), not answer.layout_errors)
        return on_scale(sum(kept) / len(kept), self.scale)
