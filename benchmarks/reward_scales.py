"""What each reward term gives to clean, degraded and wrong answers spoken by a real voice, on the scale 1 to 5.

    python benchmarks/reward_scales.py [--sentences 8]

The answers are spoken by ttspico. What is degraded and what is wrong depends on what the term is about; the table says
it. Prints a table with the mean and range over the sentences, and writes benchmarks/results/reward_scales.csv. Terms
whose packages are not installed are left out, and named. The judge is not here: its scores are its model's.
"""

import argparse
import asyncio
import csv
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from wavalign_ext.checks.judge_check import shuffled
from wavalign_ext.pocket.voices import Voice, speak
from wavalign_ext.rewards import SpokenAnswer, build_terms
from wavalign_ext.speech.asr import write_language_model

RESULTS = Path(__file__).with_name("results") / "reward_scales.csv"
RATE = 16000
SENTENCES = (  # an answer, its keywords, the answer with one word wrong, and with its point left out
    ("three plus four is seven", ("seven",), "three plus four is eight", "three plus four"),
    ("the opposite of hot is cold", ("cold",), "the opposite of hot is old", "the opposite of hot"),
    ("after monday comes tuesday", ("tuesday",), "after monday comes sunday", "after monday"),
    ("the capital of france is paris", ("paris",), "the capital of france is rome", "the capital of france"),
    ("twelve minus ten is two", ("two",), "twelve minus ten is nine", "twelve minus ten"),
    ("before may comes april", ("april",), "before may comes march", "before may comes"),
    ("the color of snow is white", ("white",), "the color of snow is green", "the color of snow"),
    ("the number after nine is ten", ("ten",), "the number after nine is six", "the number after nine"),
)
ANSWER_VOICE = Voice("answer", "en-US", 100, 115, "answer")
OTHER_VOICE = Voice("other", "en-GB", 78, 92, "other")
QUALITIES = ("clean", "degraded", "wrong")


@dataclass(frozen=True)
class Case:
    """A term, how it is configured, and what is done to an answer to degrade it and to make it wrong."""

    name: str
    term: dict[str, Any]
    degraded: str
    wrong: str


CASES = (
    Case("semantic (partial)", {"type": "semantic"}, "one word wrong", "another answer"),
    Case("semantic (exact)", {"type": "semantic", "mode": "exact"}, "capitals and marks", "one word wrong"),
    Case("semantic (keywords)", {"type": "semantic", "mode": "keywords"}, "one keyword of two", "no keyword"),
    Case("semantic (embedding)", {"type": "semantic", "mode": "embedding"}, "reworded, keyword kept", "one word wrong"),
    Case("asr_agreement", {"type": "asr_agreement"}, "one word spoken differs", "another answer spoken"),
    Case("speech_quality", {"type": "speech_quality"}, "noise, 10 dB SNR", "50 ms pieces shuffled"),
    Case("speaker", {"type": "speaker"}, "telephone band", "another voice"),
    Case("format", {"type": "format"}, "cut off", "cut off, no speech, layout broken"),
)


def make_answers(count: int, processes: int = 1) -> dict[str, list[dict[str, SpokenAnswer]]]:
    """Case name → for each sentence, the answer in each quality."""
    chosen = SENTENCES[:count]
    jobs = [(voice, f"{text}.") for text, *_ in chosen for voice in (ANSWER_VOICE, OTHER_VOICE)]
    jobs += [(ANSWER_VOICE, f"{near}.") for _, _, near, _ in chosen]
    waves = [wave.astype(np.float32) / 32768 for wave in speak(jobs, "voices", processes)]
    own, other, near_waves = waves[0 : 2 * len(chosen) : 2], waves[1 : 2 * len(chosen) : 2], waves[2 * len(chosen) :]
    made: dict[str, list[dict[str, SpokenAnswer]]] = {case.name: [] for case in CASES}
    random = np.random.default_rng(0)
    for number, (text, keywords, near, without) in enumerate(chosen):
        elsewhere = (number + 1) % len(chosen)
        clean = SpokenAnswer(
            text=text,
            speech_codes=(1, 2, 3),
            wave=own[number],
            sample_rate=RATE,
            reference_text=text,
            reference_wave=own[elsewhere],  # the same voice in other words
            ended=True,
            truncated=False,
            keywords=keywords,
        )
        noisy, off = with_noise(own[number], 10.0, random), chosen[elsewhere][0]
        two = replace(clean, keywords=(text.split()[0], *keywords))
        variants = {
            "semantic (partial)": (clean, _says(clean, near), _says(clean, off)),
            "semantic (exact)": (clean, _says(clean, f" {text.upper()}!"), _says(clean, near)),
            "semantic (keywords)": (two, _says(two, without), _says(two, "i do not know")),
            "semantic (embedding)": (clean, _says(clean, f"i think it is {keywords[0]}"), _says(clean, near)),
            "asr_agreement": (clean, _sounds(clean, near_waves[number]), _sounds(clean, own[elsewhere])),
            "speech_quality": (clean, _sounds(clean, noisy), _sounds(clean, shuffled(own[number], RATE, random))),
            "speaker": (clean, _sounds(clean, telephone(own[number])), _sounds(clean, other[number])),
            "format": (
                clean,
                replace(clean, ended=False, truncated=True, notes={}),
                replace(clean, ended=False, truncated=True, speech_codes=(), layout_errors=("no speech",), notes={}),
            ),
        }
        for name, three in variants.items():
            made[name].append(dict(zip(QUALITIES, three, strict=True)))
    return made


def with_noise(wave: np.ndarray, snr_db: float, random: np.random.Generator) -> np.ndarray:
    """``wave`` with white noise."""
    level = np.sqrt(np.mean(wave**2)) * 10 ** (-snr_db / 20)
    return (wave + random.normal(0, level, len(wave))).astype(np.float32)


def telephone(wave: np.ndarray) -> np.ndarray:
    """``wave`` as 8 kHz sampling leaves it."""
    return soxr.resample(soxr.resample(wave, RATE, 8000), 8000, RATE)


def score_cases(count: int = len(SENTENCES)) -> Iterator[tuple[Case, dict[str, list[float]] | str]]:
    """Each case with its scores by quality, or with the reason why its term could not be built.

    Raises:
        ValueError: a term failed on an answer.
    """
    made = make_answers(count)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "answers.arpa"
        write_language_model([text for row in SENTENCES for text in (row[0], row[2])], model)
        for case in CASES:
            term = dict(case.term)
            if term["type"] == "asr_agreement":
                term["recognizer"] = {"type": "pocketsphinx", "lm": str(model)}
            try:
                mix = build_terms({"term": term})
            except ImportError as error:
                yield case, str(error)
                continue
            found: dict[str, list[float]] = {quality: [] for quality in QUALITIES}
            for row in made[case.name]:
                for quality, answer in row.items():
                    result = asyncio.run(mix(answer))
                    if result.total is None:
                        raise ValueError(f"{case.name}, {quality}: {result.reasons}")
                    found[quality].append(result.total)
            yield case, found


def _says(answer: SpokenAnswer, text: str) -> SpokenAnswer:
    return replace(answer, text=text, notes={})


def _sounds(answer: SpokenAnswer, wave: np.ndarray) -> SpokenAnswer:
    return replace(answer, wave=wave, notes={})


def main() -> None:
    """Print the table and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, choices=range(2, len(SENTENCES) + 1), default=len(SENTENCES))
    count = parser.parse_args().sentences
    print(f"Mean (lowest, highest) of {count} answers, on 1 to 5.\n")
    print("| term | clean | degraded | wrong | degraded is | wrong is |\n|---|---|---|---|---|---|")
    lines: list[dict[str, Any]] = []
    for case, found in score_cases(count):
        if isinstance(found, str):
            print(f"| {case.name} | not installed: {found} | | | | |")
            continue
        cells = []
        for quality, scores in found.items():
            low, mean, high = min(scores), statistics.mean(scores), max(scores)
            cells.append(f"{mean:.2f} ({low:.2f}, {high:.2f})")
            what = {"clean": "", "degraded": case.degraded, "wrong": case.wrong}[quality]
            numbers = {"mean": round(mean, 3), "lowest": round(low, 3), "highest": round(high, 3), "answers": count}
            lines.append({"term": case.name, "quality": quality, "what": what, **numbers})
        print(f"| {case.name} | {' | '.join(cells)} | {case.degraded} | {case.wrong} |", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS, "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
