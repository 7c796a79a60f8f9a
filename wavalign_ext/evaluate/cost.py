"""Before a judge is paid: what it gives to known pairs, and what an evaluation will send it."""

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wavalign_ext.checks.judge_check import CHARACTERS_PER_TOKEN, REPLY_TOKENS, Prices
from wavalign_ext.checks.judge_check import calibrate as calibrate_judges
from wavalign_ext.data.prepare.sources import locate
from wavalign_ext.evaluate.models import Voice
from wavalign_ext.evaluate.questions import Question
from wavalign_ext.evaluate.score import JudgePair
from wavalign_ext.evaluate.sets import QuestionSet
from wavalign_ext.rewards import SpokenAnswer
from wavalign_ext.rewards.judge_prompt import CLOSING, FORMS
from wavalign_ext.speech.audio import decode, load_audio

__all__ = ["Prices", "calibrate", "estimate"]
PAIRS, LOOKED_AT, RATE = 4, 32, 16000
DEFAULT_SECONDS = 10.0  # of an answer, where the set has no recorded one


def estimate(
    asked: QuestionSet, judges: JudgePair | None, models: int, seeds: int, voice: Voice, prices: Prices
) -> list[str]:
    """What an evaluation draws and sends at most, in words; answers are taken to be as long as the set's own."""
    answers = len(asked.questions) * seeds * models
    told = [f"{answers} answers of at most {voice.longest_answer} tokens: {models} models, {seeds} seeds"]
    if judges is None:
        return [*told, "no judge: nothing is sent anywhere"]
    looked_at = asked.questions[:LOOKED_AT]
    question_s = _mean([_seconds(question.audio, asked) for question in looked_at]) or 0.0
    answer_s = _mean([_seconds(question.answer_audio, asked) for question in looked_at])
    assumed = "" if answer_s is not None else f" (answers of {DEFAULT_SECONDS:g} s assumed: the set has none recorded)"
    seconds = question_s + (DEFAULT_SECONDS if answer_s is None else answer_s)
    texts = _mean([float(len(f"{q.text or ''}{' '.join(q.references)}")) for q in looked_at]) or 0.0
    prompt = len(judges.judges["iq"].rubric) + len(CLOSING) + len(FORMS["schema"])
    tokens = (prompt + texts) / CHARACTERS_PER_TOKEN + REPLY_TOKENS
    count = 2 * answers + 4 * PAIRS
    told.append(
        f"judge: {count} requests (IQ and EQ of each answer, and {2 * PAIRS} known pairs), each {seconds:.1f} s of "
        f"sound{assumed} and about {tokens:.0f} tokens; in all {count * seconds:.0f} s of sound and "
        f"{count * tokens:.0f} tokens"
    )
    cost = count * (tokens / 1000 * prices.tokens_1k + seconds * prices.second)
    known = prices.tokens_1k or prices.second
    return [*told, f"cost: about {cost:.2f}" if known else "cost: give --per-1k-tokens and --per-second"]


def calibrate(judges: JudgePair, asked: QuestionSet) -> bool:
    """Ask the judges about the set's own right answers and worse ones, and print it; whether each told them apart.

    Worse is, for IQ, another question's answer, and for EQ the answer's own recording shuffled. Without two references
    (for EQ: recorded ones) a judge cannot be tried, which is said, and counts as told apart.
    """
    right = [_as_answer(question, asked) for question in asked.questions if question.references]
    unlike = list({answer.text: answer for answer in right}.values())[: PAIRS + 1]
    recorded = [answer for answer in unlike if answer.wave is not None]
    tried = {"iq": unlike, "eq": recorded}
    usable = True
    for name, answers in tried.items():
        if len(answers) < 2:
            print(f"wavalign: {name} is not calibrated: the set has fewer than two references for it", flush=True)
            continue
        usable &= asyncio.run(calibrate_judges({name: judges.judges[name]}, answers))
    return usable


def _as_answer(question: Question, asked: QuestionSet) -> SpokenAnswer:
    wave = None
    if question.answer_audio and (asked.root / question.answer_audio).is_file():
        wave = load_audio(asked.root / question.answer_audio, RATE)
    answer = SpokenAnswer(
        text=question.references[0],
        speech_codes=(),
        wave=wave,
        sample_rate=RATE,
        question_text=question.text,
        reference_text=question.references[0],
        ended=True,
        truncated=False,
    )
    if isinstance(question.audio, str):
        return replace(answer, question_wave=load_audio(asked.root / question.audio, RATE), question_rate=RATE)
    return answer


def _seconds(audio: Any, asked: QuestionSet) -> float | None:
    if audio is None:
        return None
    try:
        found = locate(audio, asked.root)
        data = found if isinstance(found, bytes) else open(found, "rb").read()
        wave, rate = decode(data)
    except (ValueError, OSError):
        return None
    return float(np.shape(wave)[0] / rate)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
