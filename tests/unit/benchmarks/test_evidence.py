"""The comparison's machinery: what a run is told, its intervals, and a table that leaves no run out."""

import json
from pathlib import Path

import confirm
import numpy as np
import pandas
import pytest
import soundfile
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


def test_a_run_takes_the_place_of_its_older_self_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirm, "RESULTS", tmp_path / "confirm.csv")

    def row(recipe: str, seed: int, lam: float) -> dict:
        return {"recipe": recipe, "seed": seed, "failure": "", "lambda": lam}

    confirm._store({("wavalign", 1): [row("wavalign", 1, 0.1)], ("start", 1): [row("start", 1, 0.0)]})
    confirm._store({("wavalign", 1): [row("wavalign", 1, 0.2)], ("wavalign", 2): [row("wavalign", 2, 0.3)]})
    found = pandas.read_csv(tmp_path / "confirm.csv")
    assert list(zip(found.recipe, found.seed, found["lambda"], strict=True)) == [
        ("start", 1, 0.0),
        ("wavalign", 1, 0.2),
        ("wavalign", 2, 0.3),
    ]


def test_every_recipe_is_heard_on_the_same_questions(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """And a table that would lack a recipe is not written in the place of a whole one."""
    *runs, last = [(plan.Run("sft_anchor", 2), 0)] + [(plan.Run(recipe, 2), 30) for recipe in confirm.RECIPES]

    def answers(run: plan.Run, step: int) -> None:
        where = tmp_path / run.name / "validation"
        where.mkdir(parents=True, exist_ok=True)
        lines = []
        for n in reversed(range(12)):
            soundfile.write(where / f"{step}_{n}.wav", np.full(1600, 0.1), 16000)
            lines.append(
                {"question_audio": f"q{n:02}.wav", "question": f"question {n}", "text": f"{run.recipe} {step}"}
            )
            lines[-1]["wav"] = f"{step}_{n}.wav"
        lines.append({"question_audio": None, "question": "unheard", "text": "", "wav": lines[0]["wav"]})
        (where / f"{step}.jsonl").write_text("\n".join(map(json.dumps, lines)))

    for run, step in runs:
        answers(run, step)
    marks = "\n".join(confirm.AUDIO_MARKS.format(end) for end in ("start", "end"))
    (tmp_path / "evidence.md").write_text(marks)
    confirm.audio(tmp_path, tmp_path, 2)
    assert (tmp_path / "evidence.md").read_text() == marks and not (tmp_path / "audio").exists()
    assert f"has none of {last[0].recipe} with seed 2" in capsys.readouterr().out
    answers(*last)
    confirm.audio(tmp_path, tmp_path, 2)
    page = (tmp_path / "evidence.md").read_text()
    assert "| recipe | question 0 | question 4 | question 8 |" in page
    assert [line.split(" <audio")[0] for line in page.splitlines()[4:11]] == [
        "| start | sft_anchor 0",
        *(f"| {recipe} | {recipe} 30" for recipe in confirm.RECIPES),
    ]
    wave, rate = soundfile.read(tmp_path / "audio" / "wavalign_2.mp3")
    assert rate == 16000 and len(wave) >= 1600 and abs(wave).max() > 0.05
