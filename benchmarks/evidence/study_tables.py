"""The study's CSV files to tables and figures: nothing here trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
from evidence.bootstrap import Estimate, estimate
from evidence.settings import CONDITIONS, RECIPES, TUNING_SEED

Frame = Any  # a pandas.DataFrame, whose annotations are narrower than its behavior
Run = tuple[str, str]  # condition and recipe
MARKS = "<!-- {} of study: python benchmarks/study.py tables -->"
ORDER = ("start", *RECIPES)
ANSWERS = {
    "score": ("IQ, graded content 1 to 5", "up"),
    "lively": ("EQ, share of codes more likely lively than dull", "up"),
    "errors": ("answers that break the schedule", "down"),
}
TARGETS = {
    "nll_speech": ("NLL per speech token of lively demonstrations", "down"),
    "nll_text": ("NLL per text token of them", "down"),
}
MEASURES = ANSWERS | TARGETS
CLAIMS = (
    ("adaptive", "sft_anchor"),
    ("adaptive", "grpo_joint"),
    ("adaptive", "grpo_text"),
    ("adaptive", "joint_anchor"),
    ("adaptive", "fixed_50"),
    ("adaptive", "fixed_mean"),
    ("adaptive", "adaptive_no_ema"),
    ("prompt_gate", "adaptive"),
    ("routed", "adaptive"),
    ("dpo_text", "dpo_all"),
    ("dpo_text_anchor", "dpo_text"),
    ("dpo_text_anchor", "adaptive"),
)


class Stored:
    """The CSV files, by run.

    Pockets built on two machines differ a little, as sums of floats do; nothing is compared over two. A condition's
    runs are those on the pocket that it has most runs on.
    """

    def __init__(self, results: Path) -> None:
        read = {
            path.name.split(".")[0].removeprefix("study_"): pandas.read_csv(path, dtype={"weights": str})
            for path in results.glob("study_*.csv*")
        }
        if not {"runs", "answers", "targets", "steps"} <= read.keys():
            raise SystemExit(f"{results} has no study_runs.csv: run python benchmarks/study.py first")
        self.all, answers = read["runs"], read["answers"]
        self.weights = {name: group.weights.mode()[0] for name, group in self.all.groupby("condition")}
        self.runs: Frame = self._own(self.all)
        self.steps: Frame = self._own(read["steps"])
        self.rows = {name: (answers[answers.taught == 1], "question") for name in ANSWERS}
        self.rows |= {name: (read["targets"], "target") for name in TARGETS}

    def _own(self, table: Frame) -> Frame:
        return table[table.weights == table.condition.map(self.weights)]

    def by_seed(self, condition: str, recipe: str, measure: str, weights: str) -> dict[int, np.ndarray]:
        """Per seed one measure, item by item in order, of the runs from one start."""
        table, item = self.rows[measure]
        condition = "clean" if recipe == "start" else condition
        known: Any = table[(table.recipe == recipe) & (table.condition == condition) & (table.weights == weights)]
        known = known[known.seed != TUNING_SEED].sort_values(item)
        groups: Any = known.groupby("seed")
        return {int(seed): group[measure].to_numpy(float) for seed, group in groups}

    def of(self, condition: str, recipe: str, measure: str) -> Estimate:
        return estimate(list(self.by_seed(condition, recipe, measure, self.weights[condition]).values()))

    def difference(self, one: Run, other: Run, measure: str, level: float = 0.95) -> Estimate:
        """Paired by seed and question, from the start of the first one's condition."""
        a, b = (self.by_seed(*run, measure, self.weights[one[0]]) for run in (one, other))
        return estimate([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], level=level)

    def recipes(self, condition: str) -> list[str]:
        known = set(self.runs[self.runs.condition == condition].recipe) | {"start"}
        return [recipe for recipe in ORDER if recipe in known]


def make(results: Path, docs: Path) -> None:
    """Rewrite the marked part of docs/evidence.md and the figures in docs/images."""
    from evidence.study_figures import draw

    stored, page = Stored(results), docs / "evidence.md"
    tried = [condition for condition in CONDITIONS if len(stored.recipes(condition)) > 1]
    parts = [text for condition in tried for text in _condition(stored, condition)]
    parts += ["### Gradients and movement, clean, mean over seeds (least to most)", _diagnosis(stored)]
    parts += ["### Every run", _runs(stored)]
    before, _, rest = page.read_text().partition(MARKS.format("start"))
    after = rest.partition(MARKS.format("end"))[2]
    text = "\n\n".join(parts)
    page.write_text(f"{before}{MARKS.format('start')}\n\n{text}\n\n{MARKS.format('end')}{after}")
    draw(stored, docs / "images")


def _condition(stored: Stored, condition: str) -> list[str]:
    recipes = stored.recipes(condition)
    rows = []
    for recipe in recipes:
        lam: Any = stored.runs[(stored.runs.condition == condition) & (stored.runs.recipe == recipe)]
        lam = lam[lam.seed != TUNING_SEED].lam
        cells = [stored.of(condition, recipe, name) for name in MEASURES]
        shown = "–" if recipe == "start" else f"{lam.mean():.2f}"
        rows.append([recipe, str(cells[0].seeds), shown, *map(str, cells)])
    heads = [f"{name} {'↑' if way == 'up' else '↓'}" for name, (_, way) in MEASURES.items()]
    found = [f"### {condition}", _markdown(["recipe", "seeds", "λ", *heads], rows)]
    claims = {f"{a} − {b}": ((condition, a), (condition, b)) for a, b in CLAIMS if {a, b} <= set(recipes)}
    if condition != "clean":
        claims |= {"adaptive − adaptive, clean": ((condition, "adaptive"), ("clean", "adaptive"))}
    # Bonferroni over the comparisons of a condition: an interval in bold leaves out 0 at that stricter level.
    level = 1 - 0.05 / (len(claims) * len(MEASURES))
    rows = []
    for told, runs in claims.items():
        cells = []
        for name in MEASURES:
            plain, strict = (stored.difference(*runs, name, lv) for lv in (0.95, level))
            cells.append(f"**{plain}**" if strict.low * strict.high > 0 else str(plain))
        rows.append([told, *cells])
    told = (
        f"Paired by seed and question, 95 %; bold: leaves out 0 at {level:.4f}, {len(claims)} × {len(MEASURES)} tests."
    )
    return [*found, _markdown(["difference", *heads], rows), told]


def _diagnosis(stored: Stored) -> str:
    names = [name for name in stored.runs if name.split("_")[0] in ("norm", "cosine", "change", "size")]
    names.append("reward_variance")
    chosen = stored.runs[(stored.runs.condition == "clean") & (stored.runs.seed != TUNING_SEED)]
    rows = []
    for recipe in stored.recipes("clean"):
        group = chosen[chosen.recipe == recipe]
        rows.append([recipe, *(f"{group[n].mean():.2g} ({group[n].min():.2g} to {group[n].max():.2g})" for n in names)])
    return _markdown(["recipe", *names], rows)


def _runs(stored: Stored) -> str:
    """How many of each there are; every single one is a line of study_runs.csv."""
    rows = []
    groups: Any = stored.all.groupby(["condition", "weights", "recipe"], sort=False)
    for (condition, weights, recipe), group in groups:
        own = group[group.seed != TUNING_SEED]
        tried = sorted(group[group.seed == TUNING_SEED].rate)
        rates = ", ".join(f"{rate:g}" for rate in sorted(set(own.rate)))
        rows.append([condition, str(weights), recipe, str(len(own)), rates, ", ".join(f"{rate:g}" for rate in tried)])
    return _markdown(["condition", "pocket", "recipe", "seeds", "learning rate", "tried on the tuning seed"], rows)


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
