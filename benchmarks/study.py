"""Does the method do what its paper claims? Recipes × conditions × seeds on the pocket model, in a plain loop.

    python benchmarks/study.py            tune, train, evaluate, then tables and figures; goes on where it was
    python benchmarks/study.py add        only runs that benchmarks/results/study_*.csv lack, at the rates there
    python benchmarks/study.py tables     tables and figures again from benchmarks/results/study_*.csv

Two processes of one thread each; a run takes about half a minute of one. Learning rates are tuned per recipe on a seed
of its own, by held-out IQ and EQ together. Every run is listed, those of the tuning too. docs/evidence.md has the
reading; ``confirm.py`` confirms the main recipes through verl.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas
from evidence.settings import CONDITIONS, RECIPES, SEEDS, STEPS, TUNING_SEED
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KEYS = ["condition", "recipe", "seed", "rate"]
"""A run by its numbers; ``weights`` beside them names the pocket that it started from."""
HARDER = ("sft_anchor", "grpo_text", "fixed_mean", "adaptive", "prompt_gate")
"""Recipes of the conditions other than ``clean``."""


@dataclass(frozen=True)
class Job:
    """One run; ``start`` is the model that every other one starts from."""

    recipe: str
    condition: str
    seed: int
    rate: float

    @property
    def name(self) -> str:
        return f"{self.condition}-{self.recipe}-{self.seed}-{self.rate:g}"


def tuning() -> list[Job]:
    """Each recipe at each rate. ``fixed_mean`` takes the rate of the recipe whose λ it takes."""
    tuned = [name for name, recipe in RECIPES.items() if recipe.mean_of is None]
    return [Job(name, "clean", TUNING_SEED, rate) for name in tuned for rate in RECIPES[name].rates]


def jobs(rates: dict[str, float], seeds: Iterable[int], conditions: Collection[str]) -> list[list[Job]]:
    """Two rounds: those of the second take λ from the first. Seed by seed, so that an early stop leaves whole ones.

    The start and ``adaptive`` in ``clean`` are always there: the other conditions are compared with them.
    """
    rounds: list[list[Job]] = [[], []]
    for seed in seeds:
        rounds[0].append(Job("start", "clean", seed, 0.0))
        if "clean" not in conditions:
            rounds[0].append(Job("adaptive", "clean", seed, rates["adaptive"]))
        for condition in conditions:
            for name in RECIPES if condition == "clean" else HARDER:
                later = RECIPES[name].mean_of
                rounds[later is not None].append(Job(name, condition, seed, rates[later or name]))
    return rounds


@cache
def _world() -> Any:
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    from evidence.world import World

    return World.load()


def run(job: Job, folder: Path) -> None:
    """Leave the run's numbers in ``folder``; nothing to do where they are."""
    path = folder / f"{job.name}.json"
    if path.is_file():
        return
    from evidence.diagnosis import diagnose
    from evidence.held_out import evaluate
    from evidence.loop import Trained, train

    world = _world()
    if job.recipe == "start":
        trained = Trained(world.start())
    else:
        recipe = RECIPES[job.recipe]
        lam = None if recipe.mean_of is None else _mean_lambda(folder, job, recipe.mean_of)
        trained = train(world, recipe, job.condition, job.seed, job.rate, lam)
    found = (
        asdict(job)
        | {"weights": world.weights}
        | evaluate(world, trained.model, job.seed)
        | {"log": trained.log, "seconds": trained.seconds}
    )
    found["diagnosis"] = diagnose(world, trained, job.condition, job.seed)
    path.with_suffix(".part").write_text(json.dumps(found))
    os.replace(path.with_suffix(".part"), path)


def _mean_lambda(folder: Path, job: Job, of: str) -> float:
    other = json.loads((folder / f"{Job(of, job.condition, job.seed, job.rate).name}.json").read_text())
    return statistics.mean(row["lam"] for row in other["log"])


def best_rates(folder: Path) -> dict[str, float]:
    """Of each recipe, the rate with the best mean of IQ and EQ, both on a scale from 0 to 1."""
    by_recipe: dict[str, list[tuple[float, float]]] = {}
    for job in tuning():
        rows = json.loads((folder / f"{job.name}.json").read_text())["answers"]
        known = [row for row in rows if row["taught"]]
        merit = statistics.mean((row["score"] - 1) / 4 + row["lively"] for row in known if row["lively"] is not None)
        by_recipe.setdefault(job.recipe, []).append((merit, job.rate))
    return {name: max(tried)[1] for name, tried in by_recipe.items()}


def stored_jobs() -> dict[str, set[Job]]:
    """The runs of the CSV files by the weights that they started from."""
    runs: Any = pandas.read_csv(RESULTS / "study_runs.csv", dtype={"weights": str})
    return {
        weights: {Job(**line) for line in group[KEYS].to_dict("records")} for weights, group in runs.groupby("weights")
    }


def run_all(
    folder: Path, seeds: list[int], conditions: list[str], rate: float | None, processes: int, add: bool = False
) -> None:
    """Without a ``rate`` for all recipes, each has one tuned, or the stored one with ``add``."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    stored = stored_jobs() if add else {}
    there = stored.get(_world().weights, set()) if add else set()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:

        def all_of(part: list[Job], what: str) -> None:
            part = [job for job in part if job not in there]
            made = pool.map(partial(run, folder=folder), part)
            for _ in tqdm(made, what, total=len(part), unit="run"):
                pass

        if add:
            rates = {job.recipe: job.rate for some in stored.values() for job in some if job.seed != TUNING_SEED}
        elif rate is None:
            all_of(tuning(), "tuning")
            rates = best_rates(folder)
        else:
            rates = dict.fromkeys(RECIPES, rate)
        for number, part in enumerate(jobs(rates, seeds, conditions), 1):
            all_of(part, f"round {number}")
    store(folder, add)


def store(folder: Path, add: bool = False) -> None:
    """All runs in ``folder`` as CSV files; with ``add`` beside the others that are there."""
    tables: dict[str, list[dict[str, Any]]] = {"runs": [], "answers": [], "targets": [], "steps": []}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        who = {name: found[name] for name in (*KEYS, "weights")}
        seconds = {f"{name}_s": value / STEPS for name, value in found["seconds"].items()}
        lam = [row["lam"] for row in found["log"]]
        tables["runs"].append(who | {"lam": statistics.mean(lam) if lam else None} | found["diagnosis"] | seconds)
        for name, key in (("answers", "answers"), ("targets", "targets"), ("steps", "log")):
            tables[name] += [who | row for row in found[key]]
    for name, rows in tables.items():
        path = RESULTS / f"study_{name}.csv{'.gz' if name in ('answers', 'targets') else ''}"
        compression: Any = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
        table = pandas.DataFrame(rows)
        if add:
            before: Any = pandas.read_csv(path, dtype={"weights": str})
            own = [*KEYS, "weights"]
            made = set(table[own].itertuples(index=False, name=None))
            before = before[[line not in made for line in before[own].itertuples(index=False, name=None)]]
            table = pandas.concat([before, table]).sort_values(["condition", "weights", "recipe"], kind="stable")
        table.to_csv(path, index=False, float_format="%.5g", compression=compression)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "add", "tables"), default="all", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "study", help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--rate", type=float, help="one learning rate for all recipes, in place of tuning each")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, each on one core (default 2)")
    arguments = parser.parse_args()
    if arguments.what != "tables":
        add, given = arguments.what == "add", (arguments.seeds, arguments.conditions, arguments.rate)
        run_all(arguments.out, *given, arguments.processes, add)
    from evidence.study_tables import make

    make(RESULTS, ROOT / "docs")


if __name__ == "__main__":
    main()
