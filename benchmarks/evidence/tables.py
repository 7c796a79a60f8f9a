"""CSV files to tables and figures: nothing here trains or judges."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
from evidence.bootstrap import Estimate, estimate
from evidence.measure import MEASURES, RUN_MEASURES
from evidence.plan import NOISE, NOISY_RECIPES, RECIPES

Frame = Any  # a pandas.DataFrame, whose annotations are narrower than its behaviour
ORDER = ("start", *RECIPES)
MARKS = "<!-- {} of tables: python benchmarks/experiment.py tables -->"


def make(results: Path, docs: Path) -> None:
    """Rewrite the marked part of ``docs/evidence.md`` and the figures in ``docs/images``."""
    from evidence.figures import draw

    stored = {path.stem.removeprefix("evidence_"): pandas.read_csv(path) for path in results.glob("evidence_*.csv")}
    if not {"runs", "answers", "curves"} <= stored.keys():
        raise SystemExit(f"{results} has no evidence_runs.csv: run python benchmarks/experiment.py first")
    page = docs / "evidence.md"
    before, _, rest = page.read_text().partition(MARKS.format("start"))
    after = rest.partition(MARKS.format("end"))[2]
    tables = "\n\n".join(_tables(stored))
    page.write_text(f"{before}{MARKS.format('start')}\n\n{tables}\n\n{MARKS.format('end')}{after}")
    draw(stored, docs / "images")


def by_seed(answers: Frame, recipe: str, noise: float, measure: str, voices: str = "new") -> dict[int, np.ndarray]:
    """Per seed one measure, question by question in order; ``voices`` selects by how the asking voice is known."""
    chosen = answers[(answers.recipe == recipe) & (answers.noise == noise) & answers.voices.str.startswith(voices)]
    groups = chosen.sort_values("question_audio").groupby("seed")
    return {int(seed): group[measure].to_numpy(float) for seed, group in groups}


def of_recipe(answers: Frame, recipe: str, noise: float, measure: str, voices: str = "new") -> Estimate:
    """One measure of one recipe over its seeds."""
    return estimate(list(by_seed(answers, recipe, noise, measure, voices).values()))


def paired(answers: Frame, one: tuple[str, float], other: tuple[str, float], measure: str) -> Estimate:
    """One recipe and noise minus another on new voices, over the seeds that both have."""
    a, b = (by_seed(answers, recipe, noise, measure) for recipe, noise in (one, other))
    return estimate([a[seed] - b[seed] for seed in a.keys() & b.keys()])


def _tables(stored: dict[str, Frame]) -> list[str]:
    answers, runs = stored["answers"], stored["runs"]
    clean = [r for r in ORDER if ((answers.recipe == r) & (answers.noise == 0)).any()]
    found = ["### Held-out questions, voices never heard", _measures(answers, clean, "new")]
    found += ["### `wavalign` minus the others, paired by seed and question", _against(answers, clean)]
    found += ["### The same by voices of the training set", _measures(answers, clean, "trained", ("exact", "wer_own"))]
    found += ["### What training logged, mean over seeds (least to most)", _logged(runs, clean)]
    if (answers.noise > 0).any():
        found += [f"### {NOISE:.0%} of the rewards random", _dose(answers, runs)]
    if "channels" in stored:
        found += [
            "### Gradients of `grpo_joint`, mean over seeds (least to most)",
            _channels(stored["channels"]),
        ]
        found += ["### Prompts by what the gate says of them", _gates(stored["prompts"])]
    failed = runs[runs.failure.notna()]
    lines = [f"- {r.recipe}, seed {r.seed}: {r.failure}" for r in failed.itertuples()] or ["- none"]
    return [*found, "### Runs that failed", "\n".join(lines)]


def _measures(answers: Frame, recipes: list[str], voices: str, names: tuple[str, ...] = tuple(MEASURES)) -> str:
    rows = []
    for recipe in recipes:
        cells = [of_recipe(answers, recipe, 0.0, name, voices) for name in names]
        rows.append([recipe, f"{cells[0].seeds} × {cells[0].answers // cells[0].seeds}", *map(str, cells)])
    heads = [f"{name} {'↑' if MEASURES[name][1] == 'up' else '↓'}" for name in names]
    legend = "; ".join(f"`{name}`: {MEASURES[name][0]}" for name in names)
    return f"{_markdown(['recipe', 'seeds × answers', *heads], rows)}\n\n{legend}. Mean and 95 % interval."


def _logged(runs: Frame, recipes: list[str]) -> str:
    names = [*RUN_MEASURES, "reward_first", "reward_last"]
    rows = []
    for recipe in recipes:
        chosen = runs[(runs.recipe == recipe) & (runs.noise == 0) & runs.failure.isna()]
        cells = [chosen[name].dropna() if recipe != "start" or "nll" in name else chosen[name][:0] for name in names]
        rows.append([recipe, str(len(chosen)), *map(_spread, cells)])
    return _markdown(["recipe", "seeds", *names], rows)


def _dose(answers: Frame, runs: Frame) -> str:
    """Clean and noisy side by side, and what noise costs with its own interval: paired by seed and question."""
    rows = []
    for name in ("exact", "wer_own", "wer_reference"):
        cost = {}
        for recipe in NOISY_RECIPES:
            clean, noisy = (by_seed(answers, recipe, noise, name) for noise in (0.0, NOISE))
            cost[recipe] = {seed: noisy[seed] - clean[seed] for seed in sorted(clean.keys() & noisy.keys())}
            cells = (estimate([side[seed] for seed in cost[recipe]]) for side in (clean, noisy))
            rows.append(
                [recipe, name, str(len(cost[recipe])), *map(str, cells), str(estimate([*cost[recipe].values()]))]
            )
        fixed, adaptive = (cost[recipe] for recipe in NOISY_RECIPES)
        more = [adaptive[seed] - fixed[seed] for seed in fixed.keys() & adaptive.keys()]
        rows.append([" − ".join(NOISY_RECIPES[::-1]), name, str(len(more)), "", "", str(estimate(more))])
    for name in RUN_MEASURES:
        for recipe in NOISY_RECIPES:
            sides = [runs[(runs.recipe == recipe) & (runs.noise == n)].set_index("seed")[name] for n in (0.0, NOISE)]
            told = [s.dropna() for s in (*sides, sides[1] - sides[0])]
            rows.append([recipe, name, str(len(told[2])), *map(_spread, told)])
    return _markdown(["recipe", "measure", "seeds", "clean", "noisy", "noisy − clean"], rows)


def _against(answers: Frame, recipes: list[str]) -> str:
    names = ("exact", "wer_own", "wer_reference", "mos", "likeness")
    rows = []
    for recipe in recipes:
        if recipe != "wavalign" and "wavalign" in recipes:
            cells = [paired(answers, ("wavalign", 0.0), (recipe, 0.0), name) for name in names]
            rows.append([recipe, str(cells[0].seeds), *(f"**{c}**" if c.low * c.high > 0 else str(c) for c in cells)])
    heads = [f"{name} {'↑' if MEASURES[name][1] == 'up' else '↓'}" for name in names]
    return f"{_markdown(['minus', 'seeds', *heads], rows)}\n\nBold: the interval leaves out 0."


def _spread(column: Frame, form: str = ".3f") -> str:
    """Mean, least and most over the seeds."""
    values = (column.mean(), column.min(), column.max())
    return "{} ({} to {})".format(*(format(value, form) for value in values)) if len(column) else "–"


def _channels(channels: Frame) -> str:
    names = [name for name in channels.columns if name not in ("recipe", "seed", "step")]
    rows = [
        [str(step), str(len(group)), *(_spread(group[name], ".2g") for name in names)]
        for step, group in channels.groupby("step")
    ]
    return _markdown(["step", "seeds", *names], rows)


def _gates(prompts: Frame) -> str:
    """Prompts with an advantage, by the gate: shut, ajar, open."""
    known: Any = prompts[prompts.agreement.notna()].copy()
    known["said"] = np.select([known.gate < 0.02, known.gate < 0.2], ["shut (λ < 0.02)", "ajar"], "open (λ ≥ 0.2)")
    rows = []
    for said, group in known.groupby("said"):
        cells = [estimate([group[name].to_numpy(float)]) for name in ("agreement", "with_anchor", "variance", "best")]
        rows.append([said, str(len(group)), *map(str, cells)])
    degenerate = f"{len(prompts) - len(known)} of {len(prompts)} prompts had equal rewards and no gradient."
    heads = ["gate", "prompts", "agreement with the other prompts", "cosine with the anchor", "variance", "best reward"]
    return f"{_markdown(heads, rows)}\n\n{degenerate}"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
