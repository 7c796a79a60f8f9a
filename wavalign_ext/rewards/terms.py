"""Terms that need no network: is the text right, does the speech say it, was the layout kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import jiwer

from wavalign_ext.asr import load_recognizer, normalize_text, word_error_rate
from wavalign_ext.rewards.answer import SpokenAnswer
from wavalign_ext.rewards.models import ModelThread, SentenceEmbedder
from wavalign_ext.rewards.registry import Scale, TermFailed, on_scale, register_term

MODES = ("partial", "exact", "keywords", "embedding")


@register_term("semantic")
class Semantic:
    """The text against the reference: right is the top of the scale; wrong is at most its middle.

    Right is, after normalisation, the reference itself; with keywords also a text that has every one of them, each as a
    whole word or run of words. Keywords are the row's (``extra_info.keywords``), else the recipe's ``keywords``.
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

    def __init__(self, scale: Scale, mode: str = "partial", keywords: Sequence[str] = ()) -> None:
        if mode not in MODES:
            raise ValueError(f"semantic mode={mode!r} is not known: one of {', '.join(MODES)}")
        if isinstance(keywords, str) or not all(normalize_text(str(word)) for word in keywords):
            raise ValueError(f"semantic keywords={keywords!r} is not allowed: a list of words")
        if keywords and mode not in ("keywords", "embedding"):
            raise ValueError(f"semantic mode={mode!r} does not look at keywords: use mode keywords or embedding")
        self.scale, self.mode, self.keywords = scale, mode, tuple(map(str, keywords))
        self._embedder = SentenceEmbedder("semantic") if mode == "embedding" else None
        self._thread = ModelThread()

    async def score(self, answer: SpokenAnswer) -> float:
        """See the class. Raises :class:`TermFailed`: mode keywords, and neither row nor recipe has any."""
        said, wanted = normalize_text(answer.text), normalize_text(answer.reference_text)
        if self.mode == "keywords":
            return on_scale(self._keyword_share(said, answer), self.scale)
        if said == wanted:
            return self.scale[1]
        if not said or not wanted or self.mode == "exact":
            return self.scale[0]
        if self._embedder is None:
            hits = jiwer.process_words(wanted, said).hits
            return on_scale(self.MOST_FOR_WRONG * hits / max(len(wanted.split()), len(said.split())), self.scale)
        alike = max(0.0, await self._thread.call(self._embedder.similarity, wanted, said))
        answer.notes["similarity"] = alike
        right = bool(answer.keywords or self.keywords) and self._keyword_share(said, answer) == 1
        least = self.MOST_FOR_WRONG if right else 0.0
        return on_scale(least + self.MOST_FOR_WRONG * alike, self.scale)

    def _keyword_share(self, said: str, answer: SpokenAnswer) -> float:
        """1 when every keyword is in the text, else at most :attr:`MOST_FOR_WRONG`."""
        keywords = [normalize_text(str(word)) for word in answer.keywords or self.keywords]
        if not keywords or not all(keywords):
            raise TermFailed("semantic: no keywords: give the row extra_info.keywords, or the term keywords")
        found = sum(f" {word} " in f" {said} " for word in keywords)
        return 1.0 if found == len(keywords) else self.MOST_FOR_WRONG * found / len(keywords)


@register_term("asr_agreement")
class AsrAgreement:
    """The speech against the text of the same answer: 1 − word error rate, on the scale.

    Text without speech, or speech without text, is a judgement (the bottom of the scale), not a failure.
    """

    def __init__(self, scale: Scale, recognizer: Mapping[str, Any]) -> None:
        self.scale = scale
        self.recognizer = load_recognizer(recognizer)
        self._thread = ModelThread()

    async def score(self, answer: SpokenAnswer) -> float:
        """Transcribe in a thread; notes ``transcript`` and ``wer``."""
        if not answer.has_speech or not answer.text:
            answer.notes["wer"] = 1.0
            return self.scale[0]
        transcript = await self._thread.call(self.recognizer.transcribe, answer.wave, answer.sample_rate)
        error = word_error_rate(answer.text, transcript)
        answer.notes.update(transcript=transcript, wer=error)
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
