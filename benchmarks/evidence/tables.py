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


def of_recipe(answers: Frame, recipe: str, noise: float, measure: str, voices: str = "new") -> Estimate:
    """One measure of one recipe over its seeds; ``voices`` selects the questions by how their voice is known."""
    chosen = answers[(answers.recipe == recipe) & (answers.noise == noise) & answers.voices.str.startswith(voices)]
    by_seed = [group.sort_values("question_audio")[measure].to_numpy(float) for _, group in chosen.groupby("seed")]
    return estimate(by_seed)


def _tables(stored: dict[str, Frame]) -> list[str]:
    answers, runs = stored["answers"], stored["runs"]
    clean = [r for r in ORDER if ((answers.recipe == r) & (answers.noise == 0)).any()]
    found = ["### Held-out questions, voices never heard", _measures(answers, clean, "new")]
    found += ["### The same by voices of the training set", _measures(answers, clean, "trained", ("exact", "wer_own"))]
    found += ["### What training logged, mean over seeds (least to most)", _logged(runs, clean)]
    if (answers.noise > 0).any():
        found += [f"### {NOISE:.0%} of the rewards random", _dose(answers)]
    if "channels" in stored:
        found += ["### Gradients of the joint objective", _channels(stored["channels"])]
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
    names = [*RUN_MEASURES, "reward_first", "reward_last", "seconds_per_step"]
    rows = []
    for recipe in recipes:
        chosen = runs[(runs.recipe == recipe) & (runs.noise == 0) & runs.failure.isna()]
        cells = [chosen[name].dropna() if recipe != "start" or "nll" in name else chosen[name][:0] for name in names]
        told = [f"{c.mean():.3f} ({c.min():.3f} to {c.max():.3f})" if len(c) else "–" for c in cells]
        rows.append([recipe, str(len(chosen)), *told])
    return _markdown(["recipe", "seeds", *names], rows)


def _dose(answers: Frame) -> str:
    """Clean and noisy side by side, and the loss with its own interval: paired by seed and question."""
    rows = []
    for recipe in NOISY_RECIPES:
        for name in ("exact", "wer_own"):
            clean, noisy = (of_recipe(answers, recipe, noise, name) for noise in (0.0, NOISE))
            rows.append([recipe, name, str(clean), str(noisy), str(_difference(answers, recipe, name))])
    return _markdown(["recipe", "measure", "clean", "noisy", "noisy − clean"], rows)


def _difference(answers: Frame, recipe: str, measure: str) -> Estimate:
    new = answers[(answers.recipe == recipe) & answers.voices.str.startswith("new")]
    differences = []
    for _, group in new.groupby("seed"):
        sides = [group[group.noise == n].sort_values("question_audio")[measure].to_numpy(float) for n in (NOISE, 0.0)]
        if len(sides[0]) == len(sides[1]):
            differences.append(sides[0] - sides[1])
    return estimate(differences)


def _channels(channels: Frame) -> str:
    names = [name for name in channels.columns if name not in ("recipe", "seed", "step")]
    rows = [
        [str(step), str(len(group)), *(f"{group[name].mean():.3g}" for name in names)]
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
