"""``wavalign pairs SOURCE --out DIR``: see :mod:`wavalign_ext.data.pairs`."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wavalign_ext.data.pairs.candidates import TOTAL, Broken, Prompt, read
from wavalign_ext.data.pairs.choose import REASONS, ChosenPair, ScoreMode, balance, choose

ABOUT = """Pairs of a better and a worse answer, for the objectives dpo and ipo. SOURCE is a run's folder (its rollouts,
with --data for the prompts), a .json or .jsonl file of scored candidates (the public WavAlign release's schema), or a
.csv file of listeners' votes. Writes pairs.parquet for a run, else pairs.jsonl for `wavalign prepare`, and report.json:
counts, and what the two sides differ in beside the score. See docs/preference.md."""
MIN_GAP = {"run": 1.0, "scored": 1.0, "votes": 0.5}


def main(argv: Sequence[str] | None = None) -> int:
    """0: written; 1: rows are broken (and were not to be skipped) or no pair is left; 2: wrong arguments."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except (ValueError, OSError) as error:
        print(f"wavalign: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wavalign pairs", description=ABOUT)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="runs/NAME, candidates.jsonl or votes.csv")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the pairs go")
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="PARQUET", help="of a run: what it was trained on"
    )
    parser.add_argument(
        "--score",
        metavar="NAME",
        help="sum, or one score: semantic, acoustic, a reward term; default: a run's total, else the sum",
    )
    parser.add_argument("--weights", metavar="NAME=W,…", help="a weighted sum instead: semantic=0.7,acoustic=0.3")
    parser.add_argument(
        "--min-gap", type=float, metavar="GAP", help="least difference of a pair; default: 1, for votes 0.5"
    )
    parser.add_argument(
        "--per-prompt", type=int, default=1, metavar="K", help="most pairs of a prompt (default: %(default)s)"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave broken rows out and list them in rejects.jsonl")
    parser.add_argument("--show", type=int, default=50, metavar="N", help="broken rows shown (default: %(default)s)")
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.per_prompt < 1:
        raise ValueError(f"--per-prompt={args.per_prompt} is not allowed: at least 1")
    kind, found = read(args.source)
    if kind == "run" and not args.data:
        raise ValueError(
            f"{str(args.source)!r} is a run, whose dumps hold no prompts: give its data files, --data FILE"
        )
    rows = list(found)
    broken = [row for row in rows if isinstance(row, Broken)]
    prompts = [row for row in rows if isinstance(row, Prompt)]
    mode, min_gap = _mode(args, kind), MIN_GAP[kind] if args.min_gap is None else args.min_gap
    pairs: list[ChosenPair] = []
    left_out: Counter[str] = Counter()
    for prompt in prompts:
        some, reason = choose(prompt, mode, min_gap, args.per_prompt)
        pairs += some
        left_out.update([reason] if reason else [])
    for row in broken[: args.show]:
        print(f"wavalign: {row.where}: {row.reason}", file=sys.stderr)
    if broken:
        print(f"wavalign: {len(broken)} rows are broken{', left out' if args.skip_bad else ''}", file=sys.stderr)
    if broken and not args.skip_bad:
        print("wavalign: nothing was written: correct these rows, or leave them out with --skip-bad", file=sys.stderr)
        return 1
    counts = {
        "prompts": len(prompts),
        "broken": len(broken),
        **{f"left_out_{name}": left_out[name] for name in REASONS},
    }
    if not pairs:
        print(f"wavalign: no pair is left of {counts}: nothing was written", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    path = _write_run(args, pairs) if kind == "run" else _write_lines(args.out / "pairs.jsonl", map(_line, pairs))
    _write_lines(args.out / "rejects.jsonl", ({"where": row.where, "reason": row.reason} for row in broken))
    report = counts | balance(pairs)
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    _say(path, report)
    return 0


def _mode(args: argparse.Namespace, kind: str) -> ScoreMode:
    if args.weights is None:
        name = args.score or (TOTAL if kind == "run" else "sum")
        return ScoreMode(None if name == "sum" and kind != "run" else {name: 1.0})
    try:
        weights = {name: float(weight) for name, weight in (part.split("=") for part in args.weights.split(","))}
    except ValueError:
        raise ValueError(f"--weights={args.weights!r} is not allowed: semantic=0.7,acoustic=0.3") from None
    if args.score:
        raise ValueError("--score and --weights say the same thing: give one of them")
    return ScoreMode(weights)


def _line(pair: ChosenPair) -> dict[str, Any]:
    """In the public release's field names, which ``wavalign prepare`` reads."""
    return pair.prompt.record | {
        "sft_target_text": pair.chosen.text,
        "sft_target_audio": pair.chosen.audio,
        "rejected_text": pair.rejected.text,
        "rejected_audio": pair.rejected.audio,
        "chosen_score": pair.chosen_score,
        "rejected_score": pair.rejected_score,
        "score_gap": pair.gap,
        "chosen_key": pair.chosen.name,
        "rejected_key": pair.rejected.name,
    }


def _write_lines(path: Path, rows: Any) -> Path:
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(part, path)
    return path


def _write_run(args: argparse.Namespace, pairs: Sequence[ChosenPair]) -> Path:
    """The data's rows with two answers each; their targets stay, for the anchor."""
    import pyarrow
    import pyarrow.parquet

    rows: dict[str, dict[str, Any]] = {}
    for file in args.data:
        for row in pyarrow.parquet.read_table(file).to_pylist():
            info = row.get("extra_info") or {}
            rows.setdefault(str(info.get("question_audio") or info.get("question")), row)
    lost = [pair for pair in pairs if pair.prompt.key not in rows]
    if lost:
        raise ValueError(
            f"{lost[0].prompt.where}: no row of --data has the question {lost[0].prompt.key!r} ({len(lost)} pairs in "
            "all): give the files that the run was trained on"
        )
    made = [
        rows[pair.prompt.key]
        | {"chosen_text": pair.chosen.text, "chosen_speech": list(pair.chosen.codes or ())}
        | {"rejected_text": pair.rejected.text, "rejected_speech": list(pair.rejected.codes or ())}
        | {"chosen_score": pair.chosen_score, "rejected_score": pair.rejected_score}
        for pair in pairs
    ]
    path = args.out / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), part := path.with_name(path.name + ".part"))
    os.replace(part, path)
    return path


def _say(path: Path, report: dict[str, Any]) -> None:
    words, gap = report["words"], report["gap"]
    left = ", ".join(f"{report[f'left_out_{name}']} {name.replace('_', ' ')}" for name in REASONS)
    print(f"wavalign: {path}: {report['pairs']} pairs of {report['prompts']} prompts; prompts left out: {left}")
    print(
        f"wavalign: gap {gap['mean']:.2f} on average, {gap['least']:.2f} at least; the better answer is the longer one "
        f"in {words['chosen_longer']:.0%} of pairs ({words['chosen']:.1f} words against {words['rejected']:.1f})"
    )
    if words["chosen_longer"] > 0.7 or words["chosen_longer"] < 0.3:
        print("wavalign: WARNING: length alone nearly tells the two sides apart, and will be learnt with the score")
    if path.suffix == ".jsonl":
        print(f"wavalign: next: wavalign prepare {path} --out DIR, then +recipe=dpo_text_anchor on its parquet")
    else:
        print(f"wavalign: train on it with +recipe=dpo_text_anchor data.train_files={path}")
