"""The study's main recipes again, through stock verl: do the orderings of the plain loop hold in the real trainer?

    python benchmarks/confirm.py            train each recipe with each seed, then the table; goes on where it was
    python benchmarks/confirm.py tables     the table of docs/evidence.md again from benchmarks/results/confirm.csv
    python benchmarks/confirm.py audio      answers of every recipe to the same questions there, from the runs' folders

A run takes about four minutes on two idle cores. A run that failed is a line of the CSV with the reason; lines of runs
that were not asked for stay.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas
import soundfile
from evidence.plan import Run, read_metrics, train
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "confirm.csv"
RECIPES = ("sft_anchor", "grpo_joint", "grpo_text", "wavalign_fixed_mix", "wavalign", "wavalign_prompt_gate")
SEEDS, STEPS = (1, 2), 30
MEASURES = {
    "IQ ↑": "val-aux/wavalign/pocket/score_semantic/mean@1",
    "right ↑": "val-aux/wavalign/pocket/right/mean@1",
    "EQ ↑": "val-aux/wavalign/pocket/manner/mean@1",
    "NLL of speech ↓": "val-anchor/nll_speech",
    "NLL of text ↓": "val-anchor/nll_text",
}
MARKS = "<!-- {} of confirmation: python benchmarks/confirm.py tables -->"
AUDIO_MARKS, QUESTIONS = "<!-- {} of answers: python benchmarks/confirm.py audio -->", 3


def run_all(folder: Path, recipes: list[str], seeds: list[int], steps: int) -> None:
    """Seed by seed, so that an early stop leaves whole comparisons; the CSV is rewritten after each run."""
    from wavalign_ext.pocket.build import build

    files = [build() / "data" / f"{split}.parquet" for split in ("val", "held_out")]
    plan = [Run(recipe, seed) for seed in seeds for recipe in recipes]
    made: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in (progress := tqdm(plan, "runs", unit="run")):

        def show(step: int, name: str = run.name, bar: Any = progress) -> None:
            bar.set_postfix_str(f"{name}, step {step}")

        where = folder / run.name
        failure = train(run, steps, where, files, start=run.recipe == recipes[0], on_step=show)
        for row in _rows(run, where, steps, failure):
            made.setdefault((row["recipe"], run.seed), []).append(row)
        _store(made)


def _store(made: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    """Lines of runs that were made take the place of older ones; the others stay."""
    before = pandas.read_csv(RESULTS).to_dict("records") if RESULTS.is_file() else []
    rows = [row for row in before if (row["recipe"], row["seed"]) not in made]
    rows += [row for some in made.values() for row in some]
    order = ("start", *RECIPES)
    rows.sort(key=lambda row: (row["seed"], order.index(row["recipe"]) if row["recipe"] in order else len(order)))
    pandas.DataFrame(rows).to_csv(RESULTS, index=False, float_format="%.5g")


def _rows(run: Run, folder: Path, steps: int, failure: str) -> list[dict[str, Any]]:
    if failure:
        return [{"recipe": run.recipe, "seed": run.seed, "failure": failure}]
    metrics = read_metrics(folder)
    found = []
    for step in {0, steps} & metrics.keys():
        lam = [values["wavalign/lambda"] for values in metrics.values() if "wavalign/lambda" in values]
        row = {"recipe": run.recipe if step else "start", "seed": run.seed, "failure": ""}
        row |= {"lambda": sum(lam) / len(lam) if step else None}
        found.append(row | {name: metrics[step].get(key) for name, key in MEASURES.items()})
    return found


def tables(docs: Path) -> None:
    """Rewrite the marked part of docs/evidence.md: a line per recipe, its seeds' values side by side."""
    stored: Any = pandas.read_csv(RESULTS)
    lines = [["recipe", "λ", *MEASURES], ["---"] * (2 + len(MEASURES))]
    for recipe in ("start", *RECIPES):
        rows = stored[(stored.recipe == recipe) & stored.failure.isna()]
        if len(rows):
            lines.append([recipe, *(_side_by_side(rows[name]) for name in ("lambda", *MEASURES))])
    failed = stored[stored.failure.notna()]
    named = [f" {row.recipe}, seed {row.seed}: {row.failure}." for row in failed.itertuples()]
    told = f"{len(failed)} runs failed." + "".join(named)
    _between(MARKS, docs, f"{_markdown(lines)}\n\n{told}")


def audio(folder: Path, docs: Path, seed: int) -> None:
    """Rewrite the table of answers in docs/evidence.md and the sounds in docs/audio, from the runs of one seed.

    Both stay as they are where a recipe has not run with it: the rows of a table are of one model.
    """
    found = {recipe: _answers(folder, recipe, seed) for recipe in ("start", *RECIPES)}
    files = {recipe: file for recipe, file in found.items() if file is not None}
    if missing := [recipe for recipe in found if recipe not in files]:
        print(f"the table of answers stays as it is: {folder} has none of {', '.join(missing)} with seed {seed}")
        return
    lines: list[list[str]] = []
    for recipe, file in files.items():
        said = map(json.loads, file.read_text().splitlines())
        rows = sorted(
            (row for row in said if row["question_audio"] and row.get("wav")), key=lambda r: r["question_audio"]
        )
        rows = rows[:: len(rows) // QUESTIONS][:QUESTIONS]
        lines = lines or [["recipe", *(row["question"] for row in rows)], ["---"] * (1 + len(rows))]
        cells = []
        for number, row in enumerate(rows):
            sound = docs / "audio" / f"{recipe}_{number}.mp3"
            sound.parent.mkdir(exist_ok=True)
            soundfile.write(sound, *soundfile.read(file.parent / row["wav"]))
            cells.append(f'{row["text"]} <audio controls preload="none" src="../audio/{sound.name}"></audio>')
        lines.append([recipe, *cells])
    _between(AUDIO_MARKS, docs, _markdown(lines))


def _answers(folder: Path, recipe: str, seed: int) -> Path | None:
    """The last held-out answers of a recipe's run; those of the start lie beside the first recipe's."""
    where = folder / Run(RECIPES[0] if recipe == "start" else recipe, seed).name / "validation"
    steps = sorted(int(path.stem) for path in where.glob("*.jsonl") if (path.stem == "0") == (recipe == "start"))
    return where / f"{steps[-1]}.jsonl" if steps else None


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _between(marks: str, docs: Path, text: str) -> None:
    """Put ``text`` between the marks of docs/evidence.md."""
    page, (start, end) = docs / "evidence.md", (marks.format("start"), marks.format("end"))
    before, _, rest = page.read_text().partition(start)
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{rest.partition(end)[2]}")


def _side_by_side(values: Any) -> str:
    return ", ".join("–" if value != value else f"{value:.3f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "tables", "audio"), default="all", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "confirm", help="folder of the runs")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    if arguments.what == "all":
        run_all(arguments.out, arguments.recipes, arguments.seeds, arguments.steps)
    if arguments.what != "tables":
        audio(arguments.out, ROOT / "docs", arguments.seeds[-1])
    if arguments.what != "audio":
        tables(ROOT / "docs")


if __name__ == "__main__":
    main()
