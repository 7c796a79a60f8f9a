"""``wavalign evaluate MODEL... --set SET``: see :mod:`wavalign_ext.evaluate`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ABOUT = """Is a model better, and does it still sound right? Asks runs or exported folders the same spoken questions,
with several seeds each, and measures the answers: by the set's own rule, by the reward's terms, by measures that no
reward used, and by a judge. Writes index.html (with players), results.json, summary.csv, answers.csv and audio/.
Stopped, it goes on where it was when the same command is given again. See docs/evaluate.md."""
HELD_OUT = "held-out"


def main(argv: Sequence[str] | None = None) -> int:
    """0: written; 1: a judge that does not tell good from bad; 2: wrong arguments, or a model that does not load."""
    args = parser().parse_args(argv)
    try:
        return _run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"wavalign evaluate: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="wavalign evaluate", description=ABOUT)
    made.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="runs/NAME, or a folder of wavalign export")
    add_common(made)
    made.add_argument("--seeds", type=int, default=1, metavar="N", help="answers to each question (default 1)")
    made.add_argument("--language", default="en", metavar="CODE", help="of the answers, for figures (default en)")
    made.add_argument("--no-rewards", action="store_true", help="leave the run's own reward terms out")
    made.add_argument(
        "--judge", metavar="YAML", help="judged IQ and EQ: {model: NAME, endpoint: {url: URL}}, or a file of that"
    )
    made.add_argument("--uncalibrated", action="store_true", help="go on with a judge that fails on known pairs")
    made.add_argument("--dry-run", action="store_true", help="ask nothing; say requests, seconds of sound and cost")
    made.add_argument("--per-1k-tokens", type=float, default=0.0, metavar="PRICE", help="of text, for --dry-run")
    made.add_argument("--per-second", type=float, default=0.0, metavar="PRICE", help="of sound, for --dry-run")
    return made


def add_common(made: argparse.ArgumentParser) -> None:
    """Models, set and folder, as ``wavalign listening-test`` takes them too."""
    made.add_argument("--base", nargs="?", const="", metavar="FOLDER", help="compare with it; alone: the run's start")
    made.add_argument(
        "--set", default=HELD_OUT, metavar="SET", help="folder or file (default: the first run's held-out questions)"
    )
    made.add_argument("--format", default="auto", metavar="KIND", help="of the set; default: by its files")
    made.add_argument("--audio-root", type=Path, metavar="DIR", help="of the set's recordings")
    made.add_argument("--out", type=Path, default=Path("evaluation"), metavar="DIR", help="default: %(default)s")
    made.add_argument("--limit", type=int, metavar="N", help="at most N questions, of every category in turn")
    made.add_argument("--codec", metavar="YAML", help="of folders, where no run says it; as wavalign prepare has it")
    made.add_argument("--input-codec", metavar="YAML", help="of the user's speech, where it is another")


def load(args: argparse.Namespace, models: Sequence[Path]) -> tuple[list[Any], Any]:
    """(models, the base first; the set, cut to --limit). Raises ValueError."""
    from wavalign_ext.evaluate.models import load_models
    from wavalign_ext.evaluate.sets import read_set

    found = load_models(models, args.base, args.out, *codecs_of(args))
    source, root = args.set, args.audio_root
    if source == HELD_OUT:
        voice = next((model.voice for model in found if model.voice.held_out), None)
        if voice is None:
            raise ValueError("--set is missing: only a run has held-out questions of its own")
        source, root = voice.held_out[0], root or voice.audio_root
    asked = read_set(Path(source), args.format, root)
    for row in asked.broken[:10]:
        print(f"wavalign: {row.where}: {row.reason}", file=sys.stderr)
    if len(asked.broken) > 10:
        print(f"wavalign: and {len(asked.broken) - 10} more rows that cannot be asked", file=sys.stderr)
    if args.limit is not None:
        asked.questions = spread(asked.questions, args.limit)
    return found, asked


def codecs_of(args: argparse.Namespace) -> list[Any]:
    """What --codec and --input-codec say; None where they are not given. Raises ValueError."""
    from wavalign_ext.data.prepare.setup import codec_spec

    given = (("--codec", args.codec), ("--input-codec", args.input_codec))
    return [None if text is None else codec_spec(text, name) for name, text in given]


def spread(questions: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` questions, in rounds over the categories. Raises ValueError: fewer than one."""
    if most < 1:
        raise ValueError(f"--limit={most} is not allowed: at least 1")
    groups: dict[str, list[Any]] = {}
    for question in questions:
        groups.setdefault(question.category, []).append(question)
    longest = max(map(len, groups.values()))
    return [group[place] for place in range(longest) for group in groups.values() if place < len(group)][:most]


def _run(args: argparse.Namespace) -> int:
    from wavalign_ext.evaluate import results
    from wavalign_ext.evaluate.cost import Prices, calibrate, estimate
    from wavalign_ext.evaluate.generate import Prompter, generate
    from wavalign_ext.evaluate.page import render
    from wavalign_ext.evaluate.score import Scorer

    if args.seeds < 1:
        raise ValueError(f"--seeds={args.seeds} is not allowed: at least 1")
    models, asked = load(args, args.models)
    judges = _judges(args)
    counts = ", ".join(f"{name} {count}" for name, count in asked.categories.items())
    print(f"wavalign: {asked.name} ({asked.kind}): {len(asked.questions)} questions: {counts}", flush=True)
    if args.dry_run:
        prices = Prices(args.per_1k_tokens, args.per_second)
        print("\n".join(estimate(asked, judges, len(models), args.seeds, models[0].voice, prices)))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    if judges is not None and not calibrate(judges, asked) and not args.uncalibrated:
        print("wavalign: no answer was judged: choose another judge, or say --uncalibrated", file=sys.stderr)
        return 1
    by_id = {question.id: question for question in asked.questions}
    measured: list[results.ModelRows] = []
    for model in models:
        prompter = Prompter(model, args.out)
        drawn = generate(model, prompter, asked.questions, asked.root, args.seeds, args.out, _say)
        scorer = Scorer(model, prompter, asked.root, args.out, judges, not args.no_rewards, args.language)
        _say(f"{model.name}: measuring {len(drawn.answers)} answers")
        rows = scorer.score(by_id, drawn.answers)
        measured.append(results.ModelRows(model.name, rows, drawn.first_audio_s, drawn.refused, scorer.absent))
    facts = _facts(args, asked, models)
    found = results.lines(measured, asked.questions, args.seeds)
    results.write(args.out, found, measured, asked.questions, facts)
    notices = _notices(measured, asked)
    page = render(found, measured, asked.questions, asked.root, args.out, facts, notices)
    (args.out / "index.html").write_text(page, encoding="utf-8", errors="replace")
    print(results.table(found))
    for notice in notices:
        print(f"wavalign: {notice}")
    print(f"wavalign: {args.out / 'index.html'}: tables and players; results.json, summary.csv, answers.csv beside it")
    return 0


def _judges(args: argparse.Namespace) -> Any:
    if args.judge is None:
        return None
    import yaml

    from wavalign_ext.evaluate.score import JudgePair

    path = Path(args.judge)
    text = path.read_text(encoding="utf-8") if path.suffix in (".yaml", ".yml", ".json") else args.judge
    node = yaml.safe_load(text)
    if not isinstance(node, Mapping):
        raise ValueError(f"--judge={args.judge!r} is no mapping: give {{model: NAME, endpoint: {{url: URL}}}}")
    return JudgePair({"cache": str(args.out / "judge"), **node})


def _facts(args: argparse.Namespace, asked: Any, models: Sequence[Any]) -> dict[str, Any]:
    return {
        "set": asked.name,
        "format": asked.kind,
        "questions": len(asked.questions),
        "categories": asked.categories,
        "left_out": [{"where": row.where, "reason": row.reason} for row in asked.broken],
        "seeds": args.seeds,
        "models": {model.name: {"folder": str(model.folder), "key": model.key} for model in models},
        "sampling": {model.name: dict(model.voice.sampling) for model in models},
    }


def _notices(measured: Sequence[Any], asked: Any) -> list[str]:
    said = []
    if asked.broken:
        first = asked.broken[0]
        said.append(f"{len(asked.broken)} rows of the set were left out; the first: {first.where}: {first.reason}")
    for model in measured:
        if model.refused:
            first = model.refused[0]
            said.append(
                f"{model.name} could not be asked {len(model.refused)} questions; {first.where}: {first.reason}"
            )
        lost = sum(bool(row["reasons"]) for row in model.rows)
        if lost:
            why = next(why for row in model.rows for why in row["reasons"].values())
            said.append(f"{model.name}: {lost} answers lack a score; the first: {why}")
    absent = {name: why for model in measured for name, why in model.absent.items()}
    return said + [f"{name} was not measured: {why}" for name, why in absent.items()]


def _say(text: str) -> None:
    print(f"wavalign: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
