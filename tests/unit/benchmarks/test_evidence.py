"""The comparison's machinery: its plan, its noise, its intervals, and tables that leave no run out."""

import asyncio
import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from evidence import bootstrap, plan


def test_the_plan_has_every_recipe_with_every_seed_and_the_noisy_pair() -> None:
    found = plan.runs()
    assert len({run.name for run in found}) == len(found) == 3 * (len(plan.RECIPES) + len(plan.NOISY_RECIPES))
    words = {run.name: plan.overrides(run, 30, Path("out"), [Path("a"), Path("b")]) for run in found}
    differing = set(words["wavalign_seed1"]) ^ set(words["grpo_text_seed1"])
    assert all(word.startswith("trainer.") for word in differing)  # recipes get the same data, seeds and steps


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


def test_noise_hits_its_share_and_hits_the_same_answers_again(answer: object, registries: None) -> None:
    noisy_reward = importlib.import_module("evidence.noisy_reward")
    terms = {"semantic": {"weight": 1, "mode": "exact"}}
    noisy = noisy_reward.Noisy((1.0, 5.0), terms, share=0.3, seed=1)
    asked = [replace(answer, speech_codes=(number,)) for number in range(400)]  # type: ignore[type-var]
    scores = [asyncio.run(noisy.score(a)) for a in asked]
    changed = [score for score in scores if score != 5.0]
    assert 0.22 < len(changed) / len(scores) < 0.38 and 1 <= min(changed) < 2 and 4 < max(changed) <= 5
    assert scores == [asyncio.run(noisy.score(a)) for a in asked]


@pytest.fixture
def answer() -> object:
    from wavalign_ext.rewards import SpokenAnswer

    return SpokenAnswer(
        text="coal is black", speech_codes=(), wave=None, sample_rate=16000, question_text="what color is coal",
        question_wave=None, question_rate=16000, reference_text="coal is black", reference_wave=None, ended=True,
        truncated=False,
    )  # fmt: skip


def test_tables_and_figures_come_from_the_stored_files(tmp_path: Path) -> None:
    from evidence import measure, tables

    rng, rows, runs, curves = np.random.default_rng(0), [], [], []
    for run in plan.runs():
        recipe, who = run.recipe, {"seed": run.seed, "noise": run.noise}
        if run.name == "grpo_text_seed2":
            runs.append({"recipe": recipe, **who, "step": 4, "failure": "exit status 1, see job.log"})
            continue
        runs.append({"recipe": recipe, **who, "step": 4, "nll_text": 0.1, "nll_speech": 0.2, "reward_first": 3})
        runs[-1] |= {"reward_last": 4, "seconds_per_step": 5}
        curves += [{"recipe": recipe, **who, "step": s, "reward": 3, "lambda": 0.2, "kl_text": 0} for s in (1, 2)]
        for voices in ("new voices", "trained voices"):
            for number in range(6):
                scores = {name: rng.random() for name in measure.MEASURES} | {"exact": float(recipe == "wavalign")}
                rows.append({"recipe": recipe, **who, "voices": voices, "question_audio": f"{number}"} | scores)
    results, docs = tmp_path / "results", tmp_path / "docs"
    results.mkdir()
    docs.mkdir()
    for name, table in {"runs": runs, "answers": rows, "curves": curves}.items():
        frame = pandas.DataFrame(table).assign(**({"kl_speech": 0.0} if name == "curves" else {}))
        frame.to_csv(results / f"evidence_{name}.csv", index=False)
    marks = [tables.MARKS.format(place) for place in ("start", "end")]
    (docs / "evidence.md").write_text(f"before\n{marks[0]}\nstale\n{marks[1]}\nafter\n")
    tables.make(results, docs)
    page = (docs / "evidence.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "stale" not in page
    assert "| wavalign | 3 × 6 | 1.000 [1.000, 1.000] |" in page and "| grpo_text | 2 × 6 | 0.000" in page
    assert "| grpo_joint | 3 | **1.000 [1.000, 1.000]** |" in page and "| grpo_text | 2 | **1.000" in page
    assert "- grpo_text, seed 2: exit status 1" in page and "30% of the rewards random" in page
    assert (docs / "images" / "evidence_measures.png").stat().st_size > 10_000
    assert (docs / "images" / "evidence_curves.png").is_file()


def test_rows_of_a_run_come_from_its_folder_and_a_failed_one_says_why(tmp_path: Path) -> None:
    import json

    from evidence import study

    (tmp_path / "global_step_4").mkdir()
    steps = [{"step": s, "data": {"critic/score/mean": 3.0 + s, "timing_s/step": 9.0}} for s in (1, 2, 3, 4)]
    steps[-1]["data"] |= {"val-anchor/nll_text": 0.1, "val-anchor/nll_speech": 0.2}
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    (tmp_path / "answers_4.json").write_text('[{"exact": 1.0}]')
    for step in (0, 4):
        (tmp_path / f"channels_{step}.json").write_text('{"step": [{"norm_text": 1}], "prompts": [{"gate": 0}, {}]}')
    found = study.rows_of(plan.Run("grpo_joint", 2), tmp_path, 4, "")
    assert {name: len(rows) for name, rows in found.items()} == {
        "runs": 1, "answers": 1, "curves": 4, "channels": 2, "prompts": 4,
    }  # fmt: skip
    assert (found["runs"][0]["reward_first"], found["runs"][0]["reward_last"]) == (4.0, 7.0)
    failed = study.rows_of(plan.Run("wavalign", 2, 0.3), tmp_path / "none", 4, "exit status 1")
    assert failed == {"runs": [{"recipe": "wavalign", "seed": 2, "noise": 0.3, "step": 4, "failure": "exit status 1"}]}
