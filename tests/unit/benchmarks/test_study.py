"""The study's machinery on a model of a few thousand parameters: its plan, its loop, its diagnosis, its tables."""

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
import study
import torch
from evidence import diagnosis, held_out, loop, sampler, settings
from evidence.world import Question, Score
from hydra import compose, initialize_config_module
from transformers import Qwen2Config, Qwen2ForCausalLM

EOS, SPEECH = 1, 20


class Layout:
    """Ids from 20 on are speech."""

    pad_id = 0

    def modality(self, ids: Any) -> torch.Tensor:
        return (torch.as_tensor(ids) >= SPEECH).to(torch.int8)

    def split(self, ids: Sequence[int]) -> Any:
        return SimpleNamespace(codes=[i - SPEECH for i in ids if i >= SPEECH], errors=[], ended=EOS in ids)


class SmallWorld:
    """Forty questions; an answer's score is its count of the token 5, up to four."""

    layout, eos, forms, weights = Layout(), EOS, ("full",), "5e1f0a11"

    def start(self) -> Any:
        torch.manual_seed(3)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        return Qwen2ForCausalLM(Qwen2Config(vocab_size=40, num_key_value_heads=1, **sizes))

    def questions(self, role: str, taught: bool) -> list[Question]:
        return [Question([2, 3 + n % 7, 4 + n % 3], n, role, taught) for n in range(20 if taught else 10)]

    def demonstration(self, question: Question, rng: random.Random) -> list[int]:
        return [5, 21, 22 + rng.randrange(3), EOS]

    def score(self, ids: Sequence[int], question: Question) -> Score:
        return Score(1.0 + min(4, list(ids).count(5)), "full", 5 in ids)

    def lively(self, codes: Sequence[int]) -> float:
        return sum(codes) % 5 / 4


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loop, diagnosis, held_out):
        monkeypatch.setattr(module, "MOST_TOKENS", 8)


@pytest.mark.parametrize(
    ("name", "yaml"),
    [
        ("sft_anchor", "sft_anchor"),
        ("grpo_joint", "grpo_joint"),
        ("grpo_text", "grpo_text"),
        ("fixed_50", "wavalign_fixed_mix"),
        ("adaptive", "wavalign"),
        ("prompt_gate", "wavalign_prompt_gate"),
    ],
)
def test_a_recipe_of_the_study_is_that_of_the_trainer(name: str, yaml: str) -> None:
    import verl  # noqa: F401

    with initialize_config_module("verl.trainer.config", version_base=None):
        theirs = compose("ppo_trainer", [f"+recipe={yaml}"]).wavalign
    ours = settings.RECIPES[name].config()
    assert ours.preference.tokens == theirs.preference.tokens or not ours.uses_preference
    assert ours.mixing.model_dump() == dict(theirs.mixing)


def test_greedy_answers_are_those_of_transformers() -> None:
    model: Any = SmallWorld().start().eval()
    prompts = [[2, 3, 4], [2, 9], [2, 3, 4], [7, 8, 9, 10]]
    drawn = {"eos": EOS, "most": 12, "generator": torch.Generator().manual_seed(0), "temperature": 1e-4}
    found = sampler.sample(model, prompts, **drawn)
    for prompt, answer in zip(prompts, found, strict=True):
        given = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": EOS, "pad_token_id": 0}
        wanted = model.generate(torch.tensor([prompt]), **given)[0, len(prompt) :].tolist()
        assert answer == wanted


def test_a_nucleus_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4000, 4)
    drawn = sampler._draw(logits, 0.7, torch.Generator().manual_seed(1))
    counts = torch.bincount(drawn, minlength=4) / len(drawn)
    assert counts[2:].sum() == 0 and float(counts[0]) == pytest.approx(0.625, abs=0.03)


def test_runs_of_a_seed_repeat_and_learn_what_is_rewarded() -> None:
    world: Any = SmallWorld()
    recipe = settings.RECIPES["grpo_text"]
    first, again = (loop.train(world, recipe, "clean", 1, 1e-2, steps=25) for _ in range(2))
    assert first.log == again.log
    scores = [row["score"] for row in first.log]
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.5


def test_dpo_learns_what_is_rewarded_and_pairs_as_often_as_the_rewards_differ() -> None:
    world: Any = SmallWorld()
    log = loop.train(world, settings.RECIPES["dpo_text"], "clean", 1, 1e-2, steps=25).log
    assert all(0 < row["pairs"] <= len(loop.GROUPS) // loop.ROLLOUTS for row in log)
    scores = [row["score"] for row in log]
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.5


def test_of_a_pair_the_gradient_is_that_of_dpo_s_loss() -> None:
    """Against −log σ(β (gap − the reference's gap)) of the same rows by hand."""
    world: Any = SmallWorld()
    recipe, condition = settings.RECIPES["dpo_all"], settings.CONDITIONS["clean"]
    made = loop.Trained(world.start())
    learner = loop._Learner(world, recipe, recipe.config(), condition, made, 1e-3)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(1.05)
    asked = loop.schedule(world, condition, 1, 1)[0]
    prompts = [asked[n][0].prompt for n in loop.GROUPS]
    drawn = {"eos": EOS, "most": 8, "generator": torch.Generator().manual_seed(0)}
    rows = list(zip(prompts, sampler.sample(made.model, prompts, **drawn), strict=True))
    rewards = np.random.default_rng(0).uniform(1, 5, len(rows))
    logp = loop.log_probs(made.model, rows)
    gains = learner._gains(rows, logp.detach(), rewards)
    assert gains.pairs is not None and len(gains.pairs.chosen) > 4
    inputs = loop.loss_inputs(world, recipe.config(), condition, logp, [ids for _, ids in rows], gains)
    ours = diagnosis._gradient(made.model, inputs, 1.0, torch.ones_like(logp, dtype=torch.bool))
    sums = logp.sum(1) - loop.log_probs(learner.reference, rows).sum(1).detach()
    loss = -torch.nn.functional.logsigmoid(0.1 * (sums[gains.pairs.chosen] - sums[gains.pairs.rejected])).mean()
    theirs = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(made.model.parameters()))])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_routed_the_speech_follows_the_manner_and_not_the_content() -> None:
    world: Any = SmallWorld()
    recipe = settings.RECIPES["routed"]
    learner = loop._Learner(
        world, recipe, recipe.config(), settings.CONDITIONS["clean"], loop.Trained(world.start()), 1e-3
    )
    rows = [([2, 3], [4 + n % 3, SPEECH + n % 7, EOS]) for n in range(len(loop.GROUPS))]
    rewards = np.arange(len(rows)) % loop.ROLLOUTS + 1.0
    gains = learner._gains(rows, torch.zeros(len(rows), 3), rewards)
    lively = torch.tensor([n % 7 % 5 / 4 for n in range(len(rows))])
    assert gains.speech.abs().max() > 0.5
    assert torch.equal(gains.speech, loop.group_advantages(lively, loop.GROUPS))
    assert torch.equal(gains.text, loop.group_advantages(torch.tensor(rewards).float(), loop.GROUPS))


def test_every_recipe_meets_the_same_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    world: Any = SmallWorld()
    one, other = (loop.schedule(world, settings.CONDITIONS["out_of_reach"], 1, 3) for _ in range(2))
    assert one == other and [sum(not q.taught for q, _ in step) for step in one] == [8, 8, 8]
    assert one != loop.schedule(world, settings.CONDITIONS["out_of_reach"], 2, 3)


def test_a_gate_per_prompt_of_equal_gates_is_the_gate_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    world: Any = SmallWorld()
    monkeypatch.setattr(loop.MixingController, "_gates", lambda self, rewards: (0.3, 0.5, 0.5, 4.0, 2.0))
    logs = [
        loop.train(world, settings.RECIPES[name], "clean", 1, 1e-3, steps=2).log
        for name in ("adaptive_no_ema", "prompt_gate")
    ]
    assert [row["grad_norm"] for row in logs[0]] == pytest.approx([row["grad_norm"] for row in logs[1]], rel=1e-5)


def test_the_channels_sum_to_the_joint_gradient() -> None:
    world: Any = SmallWorld()
    asked = loop.schedule(world, settings.CONDITIONS["clean"], 1, 1)[0]
    rows = [(asked[n][0].prompt, asked[n][1]) for n in loop.GROUPS] + [(q.prompt, t) for q, t in asked]
    model = world.start()
    gains = torch.randn(len(loop.GROUPS), generator=torch.Generator().manual_seed(0))
    wav = settings.RECIPES["joint_anchor"].config()
    logp, responses = loop.log_probs(model, rows), [ids for _, ids in rows]
    inputs = loop.loss_inputs(world, wav, settings.CONDITIONS["clean"], logp, responses, loop.Gains(gains, gains))
    text = world.layout.modality(diagnosis._padded(responses, 0)) == 0
    whole, of_text, of_speech = (
        diagnosis._gradient(model, inputs, 1.0, tokens) for tokens in (torch.ones_like(text), text, ~text)
    )
    torch.testing.assert_close(whole, of_text + of_speech)
    assert of_text.norm() > 0 and of_speech.norm() > 0


def test_a_start_has_not_moved() -> None:
    world: Any = SmallWorld()
    assert set(diagnosis.moved(world, world.start(), 1).values()) == {0.0}
    trained = loop.train(world, settings.RECIPES["sft_anchor"], "clean", 1, 1e-2, steps=3)
    assert diagnosis.moved(world, trained.model, 1)["size_text"] > 0


def test_the_plan_leaves_nothing_out_and_takes_what_it_needs_from_the_first_round() -> None:
    rates = {name: 5e-4 for name, recipe in settings.RECIPES.items() if recipe.mean_of is None}
    first, second = study.jobs(rates, settings.SEEDS, settings.CONDITIONS)
    assert len({job.name for job in first + second}) == len(first) + len(second)
    clean = {job.recipe for job in first + second if job.condition == "clean" and job.seed == 1}
    assert clean == {"start", *settings.RECIPES}
    known = {(job.recipe, job.condition, job.seed, job.rate) for job in first}
    assert all((settings.RECIPES[j.recipe].mean_of, j.condition, j.seed, j.rate) in known for j in second)
    assert not {job.seed for job in study.tuning()} & set(settings.SEEDS)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of the loop itself, two seeds of two recipes, and a page for the tables."""
    from evidence import study_tables

    for name, value in (("ANSWERS", 20), ("UNTAUGHT", 5), ("TARGETS", 10)):
        monkeypatch.setattr(held_out, name, value)
    monkeypatch.setattr(study, "_world", SmallWorld)
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(settings, "STEPS", 2)
    monkeypatch.setattr(study, "STEPS", 2)
    monkeypatch.setattr(loop, "STEPS", 2)
    runs, docs = tmp_path / "runs", tmp_path / "docs"
    for folder in (runs, docs):
        folder.mkdir()
    for seed in (1, 2):
        for recipe in ("start", "adaptive", "sft_anchor"):
            study.run(study.Job(recipe, "clean", seed, 1e-3), runs)
    study.store(runs)
    (docs / "evidence.md").write_text(
        "before\n" + "\n".join(map(study_tables.MARKS.format, ("start", "end"))) + "\nafter"
    )
    return tmp_path


def test_tables_come_from_the_stored_runs(made: Path) -> None:
    """A page with the differences and their signs."""
    from evidence import study_tables

    study_tables.make(made, made / "docs")
    page = (made / "docs" / "evidence.md").read_text()
    assert page.startswith("before\n") and page.endswith("\nafter") and "| adaptive − sft_anchor |" in page
    stored = study_tables.Stored(made)
    table = pandas.read_csv(made / "study_answers.csv.gz")
    own = table[(table.taught == 1)].groupby("recipe").score.mean()
    found = stored.difference(("clean", "adaptive"), ("clean", "sft_anchor"), "score")
    assert found.mean == pytest.approx(own["adaptive"] - own["sft_anchor"]) and found.seeds == 2
    figures = {f"study_{name}.png" for name in ("trade", "curves", "moved")}
    assert {path.name for path in (made / "docs" / "images").iterdir()} == figures


def test_runs_are_added_to_those_that_are_stored(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run made again takes its own place; a condition from another start is compared with runs from that start."""
    from evidence import study_tables

    before = {path.name: path.read_bytes() for path in made.glob("study_*.csv*")}
    jobs = {study.Job(recipe, "clean", seed, 1e-3) for recipe in ("start", "adaptive", "sft_anchor") for seed in (1, 2)}
    assert study.stored_jobs() == {"5e1f0a11": jobs}
    again, other = made / "again", made / "other"
    for folder in (again, other):
        folder.mkdir()
    study.run(study.Job("adaptive", "clean", 2, 1e-3), again)
    study.store(again, add=True)
    before.pop("study_runs.csv")  # the seconds of a run differ
    assert before == {name: (made / name).read_bytes() for name in before}
    monkeypatch.setattr(SmallWorld, "weights", "00000012")
    runs = (("start", "clean"), ("adaptive", "clean"), ("adaptive", "random"))
    new = {study.Job(*run, seed, 1e-3) for run in runs for seed in (1, 2)}
    for job in new:
        study.run(job, other)
    study.store(other, add=True)
    assert study.stored_jobs() == {"5e1f0a11": jobs, "00000012": new}
    study_tables.make(made, made / "docs")
    page = (made / "docs" / "evidence.md").read_text()
    assert "### random" in page and "| adaptive − adaptive, clean |" in page
    stored = study_tables.Stored(made)
    assert stored.weights == {"clean": "5e1f0a11", "random": "00000012"}
    one, same = (stored.by_seed(condition, "adaptive", "score", "00000012") for condition in ("random", "clean"))
    found = stored.difference(("random", "adaptive"), ("clean", "adaptive"), "score")
    assert found.mean == pytest.approx(np.mean([one[seed] - same[seed] for seed in one]))
