"""The paper's comparison in small: recipes × seeds on the pocket model, judged on held-out questions.

    python benchmarks/experiment.py           train, judge, diagnose, then tables and figures; goes on where it was.
                                              Ctrl-C ends training; what is trained is still judged and stored
    python benchmarks/experiment.py tables    tables and figures again from the stored CSV files

Every run starts from the same checkpoint with the same number of rollouts and optimiser steps; a run that failed is
listed. Writes benchmarks/results/evidence_*.csv, docs/images/evidence_*.png and the tables of docs/evidence.md.
"""

import argparse
import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas
from evidence.plan import RECIPES, SEEDS, STEPS, Run, runs, train
from evidence.study import be_quiet, judge, rows_of
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
RESULTS, SEEN_ROWS, JUDGES = ROOT / "benchmarks" / "results", 48, 2


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
    """Train every run; one that is trained is judged while the next one trains. CSV files are rewritten each time."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    files = validation_files(out)
    plan = runs(tuple(arguments.recipes), tuple(arguments.seeds), not arguments.no_noise)
    failures: dict[Run, str] = {}
    judged: dict[Run, Future[None]] = {}
    # Fresh processes: models that judge must not inherit the threads of this one, and give way to training.
    with ProcessPoolExecutor(JUDGES, multiprocessing.get_context("spawn"), be_quiet) as pool:
        try:
            for run in (progress := tqdm(plan, "runs", unit="run")):

                def show(step: int, name: str = run.name, bar: Any = progress) -> None:
                    bar.set_postfix_str(f"{name}, step {step}")

                failures[run] = train(run, arguments.steps, out / run.name, files, show)
                if not failures[run]:
                    judged[run] = pool.submit(judge, run, out / run.name, arguments.steps, files)
                _write(failures, {r: f for r, f in judged.items() if f.done()}, arguments)
        except KeyboardInterrupt:
            print(f"\nno more training, {len(plan) - len(failures)} of {len(plan)} runs are left for the same command")
        print("judging the last answers")
    _write(failures, judged, arguments)


def _write(failures: dict[Run, str], judged: dict[Run, "Future[None]"], arguments: argparse.Namespace) -> None:
    """The CSV files, whole, so that an early stop leaves true ones."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run, failure in failures.items():
        if run in judged:
            judged[run].result()  # raises what judging raised
        elif not failure:
            continue
        for name, rows in rows_of(run, arguments.out / run.name, arguments.steps, failure).items():
            found.setdefault(name, []).extend(rows)
    RESULTS.mkdir(exist_ok=True)
    for name, rows in found.items():
        pandas.DataFrame(rows).to_csv(RESULTS / f"evidence_{name}.csv", index=False, float_format="%.6g")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "tables"), default="all", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "experiment", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimiser steps of every run, default {STEPS}")
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
