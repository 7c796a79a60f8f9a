"""The paper's comparison in small: recipes × seeds on the pocket model, judged on held-out questions.

    python benchmarks/experiment.py           train, judge, diagnose, then tables and figures; goes on where it was
    python benchmarks/experiment.py tables    tables and figures again from the stored CSV files

Every run starts from the same checkpoint with the same number of rollouts and optimiser steps; a run that failed is
listed. Writes benchmarks/results/evidence_*.csv, docs/images/evidence_*.png and the tables of docs/evidence.md.
"""

import argparse
import asyncio
import shutil
from pathlib import Path
from typing import Any

import pandas
from evidence.plan import RECIPES, SEEDS, Run, runs, train
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
RESULTS, SEEN_ROWS = ROOT / "benchmarks" / "results", 48
TABLES = ("runs", "answers", "curves", "channels", "prompts")


def validation_files(out: Path) -> list[Path]:
    """Questions by voices never heard, in known and new phrasings, and as many again by voices of the training set."""
    from wavalign_ext.pocket.build import build

    pocket = build()
    seen = out / "trained_voices.parquet"
    if not seen.is_file():
        table = pandas.read_parquet(pocket / "data" / "train.parquet")
        table.sample(SEEN_ROWS, random_state=0).to_parquet(seen)
    return [pocket / "data" / "val.parquet", seen]


def run_all(arguments: argparse.Namespace) -> None:
    """Train and judge every run, then diagnose the joint ones; rewrites the CSV files after each run."""
    from evidence.measure import Judges, answers, curves, read_questions, summary

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    files = validation_files(out)
    questions, judges = read_questions(files), Judges()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    plan = runs(tuple(arguments.recipes), tuple(arguments.seeds), not arguments.no_noise)
    with tqdm(plan, "runs", unit="run") as progress:
        for run in progress:
            progress.set_postfix_str(run.name)
            folder = out / run.name
            name = run.name
            failure = train(
                run, arguments.steps, folder, files, lambda step, n=name: progress.set_postfix_str(f"{n}, step {step}")
            )
            ends = [] if failure else [0] * (run.recipe == RECIPES[0]) + [arguments.steps]
            for step in ends:
                found["answers"] += asyncio.run(answers(run, folder, step, judges, questions))
                found["runs"].append(summary(run, folder, step, arguments.steps, ""))
            if failure:
                found["runs"].append(summary(run, folder, arguments.steps, arguments.steps, failure))
            else:
                found["curves"] += curves(run, folder)
                if run.recipe == "grpo_joint":
                    _diagnose(run, folder, found)
            write(found)


def _diagnose(run: Run, folder: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    from evidence.channels import diagnose

    from wavalign_ext.export import export
    from wavalign_ext.pocket import pocket_dir

    steps = sorted(int(path.name.rsplit("_", 1)[1]) for path in folder.glob("global_step_*"))
    for step in [0, *steps]:
        kept = folder / f"channels_{step}.json"
        if not kept.is_file():
            model = folder / "exported" if step else pocket_dir() / "model"
            if step:
                shutil.rmtree(model, ignore_errors=True)
                export(folder, model, step)
            pandas.Series(diagnose(model, run.seed)).to_json(kept)
        rows = pandas.read_json(kept, typ="series")
        who = {"recipe": run.recipe, "seed": run.seed, "step": step}
        found["channels"] += [who | row for row in rows["step"]]
        found["prompts"] += [who | row for row in rows["prompts"]]


def write(found: dict[str, list[dict[str, Any]]]) -> None:
    """The CSV files, whole, so that an early stop leaves true ones."""
    RESULTS.mkdir(exist_ok=True)
    for name, rows in found.items():
        if rows:
            pandas.DataFrame(rows).to_csv(RESULTS / f"evidence_{name}.csv", index=False, float_format="%.6g")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "tables"), default="all", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "experiment", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--no-noise", action="store_true", help="leave out the runs with 30%% random rewards")
    arguments = parser.parse_args()
    if arguments.what == "all":
        run_all(arguments)
    from evidence.tables import make

    make(RESULTS, ROOT / "docs")


if __name__ == "__main__":
    main()
