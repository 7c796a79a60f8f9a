"""Terms that need no network: is the text right, does the speech say it, was the layout kept."""

import asyncio
from collections.abc import Mapping
from typing import Any

import jiwer

from wavalign_ext.asr import load_recognizer, normalize_text, word_error_rate
from wavalign_ext.rewards.answer import SpokenAnswer
from wavalign_ext.rewards.registry import Scale, on_scale, register_term


@register_term("semantic")
class Semantic:
    """The text against the reference: right is the top of the scale; otherwise at most its middle.

    A wrong answer gets half of the share of reference words that it has in order. The last word of the reference is
    taken for the one that answers, so an answer that only repeats the question never gets beyond the middle.
    """

    MOST_FOR_WRONG = 0.5

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    async def score(self, answer: SpokenAnswer) -> float:
        """Exact match after normalisation, else partial credit."""
        said, wanted = normalize_text(answer.text), normalize_text(answer.reference_text)
        if said == wanted:
            return self.scale[1]
        if not said or not wanted:
            return self.scale[0]
        hits = jiwer.process_words(wanted, said).hits
        return on_scale(self.MOST_FOR_WRONG * hits / max(len(wanted.split()), len(said.split())), self.scale)


@register_term("asr_agreement")
class AsrAgreement:
    """The speech against the text of the same answer: 1 − word error rate, on the scale.

    Text without speech, or speech without text, is a judgement (the bottom of the scale), not a failure.
    """

    def __init__(self, scale: Scale, recognizer: Mapping[str, Any]) -> None:
        self.scale = scale
        self.recognizer = load_recognizer(recognizer)
        self._one_at_a_time = asyncio.Lock()  # a decoder keeps state from one utterance to the next

    async def score(self, answer: SpokenAnswer) -> float:
        """Transcribe in a thread; notes ``transcript`` and ``wer``."""
        if not answer.has_speech or not answer.text:
            answer.notes["wer"] = 1.0
            return self.scale[0]
        async with self._one_at_a_time:
            transcript = await asyncio.to_thread(self.recognizer.transcribe, answer.wave, answer.sample_rate)
        error = word_error_rate(answer.text, transcript)
        answer.notes.update(transcript=transcript, wer=error)
        return on_scale(1 - error, self.scale)


@register_term("format")
class Format:
    """Share of kept promises: the response ended, has text, has speech, and broke no rule of its layout."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    async def score(self, answer: SpokenAnswer) -> float:
        """A quarter of the scale for each."""
        kept = (answer.ended, bool(answer.text), bool(answer.speech_codes), not answer.layout_errors)
        return on_scale(sum(kept) / len(kept), self.scale)
