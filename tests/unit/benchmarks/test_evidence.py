"""The comparison's machinery: what a run is told, its intervals, and a table that leaves no run out."""

from pathlib import Path

import confirm
import numpy as np
import pandas
import pytest
from evidence import bootstrap, plan


def test_recipes_get_the_same_data_seeds_and_steps() -> None:
    runs = [plan.Run(recipe, 1) for recipe in ("wavalign", "grpo_text")]
    one, other = (set(plan.overrides(run, 30, Path("out"), [Path("a"), Path("b")], start=False)) for run in runs)
    assert one == other and "data.val_files=[a,b]" in one
    assert one ^ set(plan.overrides(plan.Run("wavalign", 2), 30, Path("out"), [Path("a"), Path("b")], False)) == {
        *(f"data.seed={seed}" for seed in (1, 2)),
        *(f"actor_rollout_ref.rollout.seed={seed}" for seed in (1, 2)),
    }


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for seed in range(100):
        questions = rng.normal(0, 1, size=40)
        values = [0.5 + 0.3 * rng.normal() + questions + 0.5 * rng.normal(size=40) for _ in range(8)]
        found = bootstrap.estimate(values, draws=300, seed=seed)
        hits += found.low <= 0.5 <= found.high
    assert 84 <= hits <= 100


def test_a_single_seed_and_missing_values_are_counted() -> None:
    found = bootstrap.estimate([np.array([1.0, np.nan, 0.0, 1.0])], draws=200)
    assert (found.mean, found.seeds, found.answers) == (pytest.approx(2 / 3), 1, 3)


def test_the_table_has_every_run_and_names_those_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = dict.fromkeys(confirm.MEASURES, 0.25)
    rows = [{"recipe": "wavalign", "seed": seed, "failure": "", "lambda": 0.5} | numbers for seed in (1, 2)]
    rows += [{"recipe": "start", "seed": 1, "failure": "", "lambda": None} | numbers]
    rows += [{"recipe": "grpo_text", "seed": 1, "failure": "exit status 1, see job.log"}]
    pandas.DataFrame(rows).to_csv(tmp_path / "confirm.csv", index=False)
    monkeypatch.setattr(confirm, "RESULTS", tmp_path / "confirm.csv")
    marks = [confirm.MARKS.format(end) for end in ("start", "end")]
    (tmp_path / "evidence.md").write_text(f"before\n{marks[0]}\nstale\n{marks[1]}\nafter\n")
    confirm.tables(tmp_path)
    page = (tmp_path / "evidence.md").read_text()
    assert page.startswith("before") and page.endswith("after\n") and "stale" not in page
    assert "| wavalign | 0.500, 0.500 | 0.250, 0.250 |" in page and "| start | – | 0.250 |" in page
    assert "1 runs failed. grpo_text, seed 1: exit status 1, see job.log." in page
