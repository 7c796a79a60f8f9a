"""``wavalign judge [OVERRIDE ...]``: what a recipe's judges give to known good and bad answers, and what they cost.

The pairs are made of the recipe's own validation rows, in whatever language they are: good is a row's target; bad is
the target of another row, or, for a judge of sound alone, the row's own recording cut into pieces and shuffled.
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wavalign_ext.checks.recipe import compose_recipe
from wavalign_ext.rewards.answer import SpokenAnswer
from wavalign_ext.rewards.judge import Judge
from wavalign_ext.rewards.judge_prompt import CLOSING, FORMS
from wavalign_ext.rewards.registry import TermFailed, build_term

ABOUT = """What a recipe's judges give to known good and bad answers, made of its own validation rows, before a run pays
for thousands of them. --dry-run asks nothing and says how many requests, seconds of sound and tokens the run will send
at most. The exit status is 1 when a judge does not put good above bad."""
PIECE_S = 0.05  # of a recording that is shuffled
CHARACTERS_PER_TOKEN, REPLY_TOKENS = 4, 60  # estimates, for English; other scripts have fewer characters per token
LOOKED_AT = 64  # rows whose recordings are measured for the estimate


@dataclass(frozen=True)
class Prices:
    """In the currency of your bill: per 1000 tokens of text, in and out alike, and per second of sound."""

    tokens_1k: float = 0.0
    second: float = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate, or estimate with ``--dry-run``; 1 when a judge cannot be used, 2 when there is none to ask."""
    parser = argparse.ArgumentParser(prog="wavalign judge", description=ABOUT)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="what verl.trainer.main_ppo will be given")
    parser.add_argument("--pairs", type=int, default=4, metavar="N", help="pairs for each judge (default 4)")
    parser.add_argument("--dry-run", action="store_true", help="ask nothing; say what the run will cost at most")
    parser.add_argument("--per-1k-tokens", type=float, default=0.0, metavar="PRICE", help="of text, for --dry-run")
    parser.add_argument("--per-second", type=float, default=0.0, metavar="PRICE", help="of sound, for --dry-run")
    args = parser.parse_args(argv)
    try:
        if args.pairs < 1:
            raise ValueError(f"--pairs={args.pairs} is not allowed: a whole number ≥ 1")
        _, config, wav = compose_recipe(args.overrides)
        judges = judges_of(wav.reward.terms, wav.reward.scale)
        rows = read_answers(config, wav.audio_root, LOOKED_AT if args.dry_run else args.pairs + 1)
        if args.dry_run:
            print("\n".join(estimate(config, judges, rows, Prices(args.per_1k_tokens, args.per_second))))
            return 0
        return int(not asyncio.run(calibrate(judges, rows)))
    except (ValueError, OSError, ImportError) as error:
        print(f"wavalign judge: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def judges_of(terms: Mapping[str, Mapping[str, Any]], scale: tuple[float, float]) -> dict[str, Judge]:
    """The judges among reward terms. Raises ValueError: there is none, or its settings are wrong."""
    judges = {}
    for name, node in terms.items():
        arguments = {key: value for key, value in node.items() if key not in ("type", "weight")}
        if node.get("type", name) == "judge":
            term = build_term("judge", scale, arguments)
            assert isinstance(term, Judge)
            judges[name] = term
    if not judges:
        raise ValueError(f"no judge is among the reward terms ({', '.join(terms)}): add one, see docs/rewards.md")
    return judges


def read_answers(config: Any, audio_root: str | None, count: int) -> list[SpokenAnswer]:
    """The targets of the first ``count`` validation rows with different texts, as answers.

    Raises:
        ValueError: there are fewer than two.
    """
    import pyarrow.parquet

    answers: dict[str, SpokenAnswer] = {}
    for file in _files(config.data.val_files):
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=LOOKED_AT):
            for row in batch.to_pylist():
                text = str(row["reward_model"]["ground_truth"])
                answers.setdefault(text, _answer(text, row.get("extra_info") or {}, Path(audio_root or ".")))
                if len(answers) == count:
                    return list(answers.values())
    if len(answers) < 2:
        raise ValueError(f"data.val_files={config.data.val_files!r} has fewer than two different targets to compare")
    return list(answers.values())


def known_pairs(aspect: str, answers: Sequence[SpokenAnswer]) -> list[tuple[SpokenAnswer, SpokenAnswer]]:
    """(good, bad) for each answer but the last, by what the aspect is about."""
    random = np.random.default_rng(0)
    pairs = []
    for good, other in zip(answers, answers[1:], strict=False):
        if aspect == "acoustic" and good.wave is not None:
            bad = replace(good, wave=shuffled(good.wave, good.sample_rate, random), notes={})
        else:
            bad = replace(good, text=other.text, wave=other.wave, sample_rate=other.sample_rate, notes={})
        pairs.append((good, bad))
    return pairs


def shuffled(wave: np.ndarray, rate: int, random: np.random.Generator) -> np.ndarray:
    """``wave`` in pieces of 50 ms, in random order."""
    pieces = np.array_split(wave, max(2, round(len(wave) / rate / PIECE_S)))
    return np.concatenate([pieces[number] for number in random.permutation(len(pieces))])


async def calibrate(judges: Mapping[str, Judge], answers: Sequence[SpokenAnswer]) -> bool:
    """Ask every judge for every pair, and print what it gave; whether each put good above bad on average."""
    usable = True
    for name, judge in judges.items():
        pairs = known_pairs(judge.aspect, answers)
        low, high = judge.scale
        print(f"{name}: {judge.request['model']} at {judge.chat.endpoint.url}, {judge.aspect}, {low:g} to {high:g}")
        given = await asyncio.gather(*(_asked(judge, answer) for pair in pairs for answer in pair))
        scores = [(good[0], bad[0]) for good, bad in zip(given[::2], given[1::2], strict=True)]
        for (good, bad), reasons in zip(pairs, zip(given[::2], given[1::2], strict=True), strict=True):
            print(f"  {good.question_text or '(asked in sound)'}")
            print(f"    good {reasons[0][1]:<8} {good.text}")
            print(
                f"    bad  {reasons[1][1]:<8} {bad.text}{' (its sound shuffled)' if judge.aspect == 'acoustic' else ''}"
            )
        usable &= _print_summary(scores)
    return usable


def _print_summary(scores: Sequence[tuple[float | None, float | None]]) -> bool:
    both = [(good, bad) for good, bad in scores if good is not None and bad is not None]
    if not both:
        print("  no pair was scored: see the reasons above")
        return False
    good, bad = (statistics.mean(column) for column in zip(*both, strict=True))
    above = sum(one > other for one, other in both)
    print(f"  good {good:.2f}, bad {bad:.2f} on average; {above} of {len(scores)} pairs have good above bad")
    return good > bad


async def _asked(judge: Judge, answer: SpokenAnswer) -> tuple[float | None, str]:
    if not judge.asks_about(answer):
        return None, "not asked: the row has no recording (extra_info.answer_audio)"
    try:
        score = await judge.score(answer)
    except TermFailed as failure:
        return None, f"missing ({failure})"
    return score, f"{score:.2f}"


def estimate(config: Any, judges: Mapping[str, Judge], answers: Sequence[SpokenAnswer], prices: Prices) -> list[str]:
    """What a run sends at most, judge by judge, in words; answers are taken to be as long as the targets."""
    steps, training, validation = _requests(config)
    lines = [f"{steps} steps: {training} rollouts and {validation} validation answers, each rated by every judge"]
    total_cost = 0.0
    for name, judge in judges.items():
        seconds = statistics.mean(_seconds(judge, answer) for answer in answers)
        prompt = len(judge.rubric) + len(CLOSING) + len(FORMS["schema"])
        texts = statistics.mean(
            len(f"{answer.question_text or ''}{answer.reference_text}{answer.text}") for answer in answers
        )
        tokens = (prompt + texts) / CHARACTERS_PER_TOKEN + REPLY_TOKENS
        count = training + validation
        cost = count * (tokens / 1000 * prices.tokens_1k + seconds * prices.second)
        total_cost += cost
        lines.append(
            f"{name}: {count} requests, each {seconds:.1f} s of sound and about {tokens:.0f} tokens of text; in all"
            f" {count * seconds / 3600:.1f} h of sound and {count * tokens / 1e6:.2f} M tokens"
        )
    if prices.tokens_1k or prices.second:
        lines.append(
            f"cost: about {total_cost:.2f} at {prices.tokens_1k:g} per 1000 tokens, {prices.second:g} per second"
        )
    else:
        lines.append("cost: give --per-1k-tokens and --per-second")
    return [*lines, "less where an answer has no speech or the judge's cache knows it; more where requests are retried"]


def _requests(config: Any) -> tuple[int, int, int]:
    """(steps, rollouts to rate, validation answers to rate) of the run that ``config`` describes."""
    import pyarrow.parquet

    rows = {
        key: sum(pyarrow.parquet.read_metadata(file).num_rows for file in _files(config.data[key]))
        for key in ("train_files", "val_files")
    }
    trainer, rollout, batch = config.trainer, config.actor_rollout_ref.rollout, config.data.train_batch_size
    steps = trainer.total_training_steps or rows["train_files"] // batch * trainer.total_epochs
    every = trainer.test_freq
    validations = int(bool(trainer.get("val_before_train", True)))
    if every > 0:
        validations += -(-steps // every)  # the last step validates whatever its number
    return steps, steps * batch * rollout.n, validations * rows["val_files"] * rollout.val_kwargs.n


def _seconds(judge: Judge, answer: SpokenAnswer) -> float:
    if not judge.audio:
        return 0.0
    question = 0.0 if answer.question_wave is None else len(answer.question_wave) / answer.question_rate
    return question + (0.0 if answer.wave is None else len(answer.wave) / answer.sample_rate)


def _answer(text: str, info: Mapping[str, Any], root: Path) -> SpokenAnswer:
    question, question_rate = _recording(info.get("question_audio"), root)
    wave, rate = _recording(info.get("answer_audio"), root)
    return SpokenAnswer(
        text=text,
        speech_codes=(),
        wave=wave,
        sample_rate=rate,
        question_text=info.get("question"),
        question_wave=question,
        question_rate=question_rate,
        reference_text=text,
        ended=True,
        truncated=False,
    )


def _recording(name: str | None, root: Path) -> tuple[np.ndarray | None, int]:
    import soundfile

    from wavalign_ext.speech.audio import load_audio

    if not name:
        return None, 16000
    try:
        rate = soundfile.info(str(root / name)).samplerate
    except soundfile.SoundFileError:
        rate = 16000  # load_audio says what is wrong with it
    return load_audio(root / name, rate), rate


def _files(value: Any) -> list[str]:
    files = [value] if isinstance(value, str) else list(value)
    for file in files:
        if not Path(file).is_file():
            raise ValueError(
                f"{file!r} is not a file: give data.train_files and data.val_files (wavalign pocket, prepare)"
            )
    return files


if __name__ == "__main__":
    sys.exit(main())
