"""The command ``wavalign``: one name for what the package does. A command's module is imported when it is asked for."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence

# name: (module with a ``main``, what it does)
COMMANDS = {
    "prepare": ("wavalign_ext.data.prepare.command", "spoken dialogues in JSONL to verl's parquet"),
    "pairs": ("wavalign_ext.data.pairs.command", "pairs of a better and a worse answer, for the preference objectives"),
    "pocket": ("wavalign_ext.pocket.__main__", "build the embedded default: voices, codecs, data and a small model"),
    "doctor": ("wavalign_ext.checks.doctor", "check this machine and a recipe's parts before a run"),
    "config": ("wavalign_ext.checks.show_config", "the keys of a recipe: value, what each takes, what it is for"),
    "judge": ("wavalign_ext.checks.judge_check", "what a recipe's judges give to known answers, and what they cost"),
    "hears": ("wavalign_ext.checks.hears", "whether a model that hears through an encoder answers what it hears"),
    "listen": ("wavalign_ext.report.listen", "what a run's model says, as a table and WAV files"),
    "report": ("wavalign_ext.report", "runs side by side, as one HTML page"),
    "evaluate": ("wavalign_ext.evaluate.command", "models on a set of spoken questions: measures, intervals, players"),
    "listening-test": ("wavalign_ext.listening.command", "two models compared blindly by people, in a browser"),
    "talk": ("wavalign_ext.listening.talk", "ask a model by microphone, in a browser, and hear its answer"),
    "convert": ("wavalign_ext.checkpoints.convert", "a spoken model's weights to a form that verl and vLLM load"),
    "export": ("wavalign_ext.checkpoints.export", "a run's checkpoint to a Hugging Face folder"),
}

FIRST_RUN = """a first run:
  wavalign doctor                                        can this machine train?
  python -m verl.trainer.main_ppo +recipe=wavalign       train the embedded pocket model; builds it when it is missing
  wavalign report runs/pocket                            curves, and answers to play

your own recordings:
  wavalign prepare dialogues.jsonl --out data/mine       ends with the command that trains on them"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. 2 for an unknown one."""
    words = list(sys.argv[1:] if argv is None else argv)
    known = {name: entry for name, entry in COMMANDS.items() if _exists(entry[0])}
    parser = argparse.ArgumentParser(
        prog="wavalign",
        description="Reinforcement learning for spoken dialogue models.",
        epilog=FIRST_RUN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    title = "commands (each has --help)"
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title=title)
    for name, (_, about) in known.items():
        commands.add_parser(name, help=about, add_help=False)
    name = parser.parse_args(words[:1]).command
    # Set rather than passed: a command's own main reads it, however it takes its arguments.
    sys.argv = [f"wavalign {name}", *words[1:]]
    return importlib.import_module(known[name][0]).main() or 0


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


if __name__ == "__main__":
    sys.exit(main())
