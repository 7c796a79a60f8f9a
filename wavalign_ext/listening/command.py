"""``wavalign listening-test A B --set SET --out DIR``: see :mod:`wavalign_ext.listening`."""

import argparse
import json
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wavalign_ext.evaluate.command import add_common, load
from wavalign_ext.listening.plan import Pair

ABOUT = """A blind listening test of two models in a browser: who is more helpful, sounds more natural, is better
overall. Draws the answers of both to the same questions, and serves the test on this machine until it is interrupted;
any number of people can take it, and go on later where they stopped. Given only --out, it goes on with the test that is
there. See docs/evaluate.md."""
CHECKS_EVERY = 8  # pairs for one attention check


def main(argv: Sequence[str] | None = None) -> int:
    """0 when it was interrupted; 2: wrong arguments, or models that do not load."""
    made = argparse.ArgumentParser(prog="wavalign listening-test", description=ABOUT)
    made.add_argument("models", type=Path, nargs="*", metavar="MODEL", help="A and B, or B alone with --base")
    add_common(made)
    made.add_argument("--pairs", type=int, default=20, metavar="N", help="of answers to compare (default 20)")
    made.add_argument("--host", default="127.0.0.1", help="where it listens (default: this machine alone)")
    made.add_argument("--port", type=int, default=8010, help="default: %(default)s")
    made.add_argument("--results", action="store_true", help="write the results of the votes so far, and end")
    made.set_defaults(out=Path("blind"))
    args = made.parse_args(argv)
    try:
        return _run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"wavalign listening-test: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from wavalign_ext.listening import app, results
    from wavalign_ext.listening.store import Store

    store = Store(args.out, *_test(args)) if args.models else Store(args.out)
    if args.results:
        paths = results.export(store)
        page = app.save_page(store)
        print(json.dumps(app.plain(store), indent=1))
        print(f"wavalign: {page}; {paths['votes']}; to learn from them: wavalign pairs {paths['pairs']} --out DIR")
        return 0
    key = _key(args.out)
    place = f"http://{args.host}:{args.port}"
    print(f"wavalign: {len(store.pairs)} comparisons of {' and '.join(store.names)}", flush=True)
    print(f"wavalign: listeners: {place}/   results: {place}/results-{key}   (end with Ctrl-C)", flush=True)
    app.serve(app.application(store, key), args.host, args.port)
    return 0


def _key(folder: Path) -> str:
    """Of the results' address, the same after a restart: listeners should not find it."""
    path = folder / "key"
    if not path.is_file():
        path.write_text(secrets.token_urlsafe(9))
    return path.read_text()


def _test(args: argparse.Namespace) -> tuple[tuple[str, str], list[Pair]]:
    """Names of A and B, and the pairs, their recordings copied into the test's folder."""
    from wavalign_ext.evaluate.command import spread
    from wavalign_ext.evaluate.generate import Prompter, generate
    from wavalign_ext.evaluate.score import Scorer

    models, asked = load(args, args.models)
    if len(models) != 2:
        raise ValueError(f"{len(models)} models are given: give two, or one with --base")
    if args.pairs < 2:
        raise ValueError(f"--pairs={args.pairs} is not allowed: at least 2")
    asked.questions = spread(asked.questions, args.pairs)
    by_id = {question.id: question for question in asked.questions}
    rows: list[dict[str, Any]] = []
    for model in models:
        prompter = Prompter(model, args.out)
        drawn = generate(model, prompter, asked.questions, asked.root, 1, args.out)
        scorer = Scorer(model, prompter, asked.root, args.out, rewards=False, measures=False)
        rows.append({row["question"]: row for row in scorer.score(by_id, drawn.answers)})
    pairs = make_pairs(asked, rows, args.out)
    print(
        f"wavalign: of {len(asked.questions)} questions both models spoke answers to", sum(not p.check for p in pairs)
    )
    return (models[0].name, models[1].name), pairs


def make_pairs(asked: Any, rows: Sequence[Mapping[str, Any]], out: Path) -> list[Pair]:
    """A pair of each question that both models answered in sound, and a check for every CHECKS_EVERY pairs.

    Raises:
        ValueError: there are fewer than two such questions.
    """
    pairs: list[Pair] = []
    for number, question in enumerate(asked.questions):
        a, b = (side.get(question.id) for side in rows)
        if a and b and a["wav"] and b["wav"]:
            audio = _copy(question.audio, asked.root, out, number)
            texts = (a["text"] or "(no text)", b["text"] or "(no text)")
            pairs.append(
                Pair(f"p{number}", question.text, audio, texts[0], a["wav"], texts[1], b["wav"], question.category)
            )
    if len(pairs) < 2:
        raise ValueError(f"both models spoke answers to {len(pairs)} questions: a test needs at least two")
    chosen = pairs[:: max(1, CHECKS_EVERY)][: max(1, len(pairs) // CHECKS_EVERY)]
    return pairs + [_check(pair, out) for pair in chosen]


def _check(pair: Pair, out: Path) -> Pair:
    """The same answer on both sides, B's in shuffled pieces: no one who listens prefers it."""
    import soundfile

    from wavalign_ext.checks.judge_check import shuffled

    wave, rate = soundfile.read(out / pair.audio_a, dtype="float32")
    path = out / "audio" / f"check-{pair.id}.wav"
    soundfile.write(path, shuffled(wave, rate, np.random.default_rng(0)), rate, subtype="PCM_16")
    spoilt = path.relative_to(out).as_posix()
    return replace(pair, id=f"c{pair.id}", text_b=pair.text_a, audio_b=spoilt, check=True)


def _copy(audio: Any, root: Path, out: Path, number: int) -> str | None:
    """The question's recording inside the test's folder; None for one that is not there."""
    if isinstance(audio, str) and (root / audio).is_file():
        path = out / "questions" / f"{number}{Path(audio).suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / audio, path)
        return path.relative_to(out).as_posix()
    return None


if __name__ == "__main__":
    sys.exit(main())
