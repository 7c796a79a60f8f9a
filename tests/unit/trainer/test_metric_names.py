"""The page of metrics against what logs them: no name without an entry, no entry without a name."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import synthetic_run
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wavalign_ext.config import PairsConfig
from wavalign_ext.method.loss import LossCoefficients, LossInputs, combined_loss
from wavalign_ext.method.mixing import MixingController
from wavalign_ext.method.objectives import Pairs, pair_terms
from wavalign_ext.method.policy_sums import PREFIX, policy_metrics, policy_sums
from wavalign_ext.method.surrogates import SURROGATES
from wavalign_ext.report import curves
from wavalign_ext.trainer.actor_batch import ActorUpdate
from wavalign_ext.trainer.metric_names import GROUPS, find, markdown
from wavalign_ext.trainer.metrics import RolloutBatch, reward_metrics, rollout_metrics
from wavalign_ext.trainer.pairing import pair_metrics

ROOT = Path(__file__).parents[3]
LOGGED = re.compile(r"(val-pairs|wavalign|actor|reward|reward_missing|reward_notes|training|val-anchor)/[^ ]+")
# verl's, which the trainer gives verl's other name or only looks at
THEIR_OWN = {"actor/mfu", "actor/loss", "actor/grad_norm"}


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.float64)


def mixing() -> dict[str, Any]:
    controller = MixingController()
    controller.update([1.0, 5.0], ["a", "a"])
    assert controller.last is not None
    return controller.last.as_metrics()


def rollouts() -> dict[str, Any]:
    text = torch.tensor([[True, False], [True, False]])
    streams = {"entropy": ones(2, 2), "logp": -ones(2, 2), "reference": -ones(2, 2)}
    masks = {"text": text, "speech": ~text}
    batch = RolloutBatch(masks, torch.tensor([1.0, 5.0]), ["a", "a"], torch.ones(2).bool(), **streams)
    return rollout_metrics(batch)


def rewards() -> dict[str, Any]:
    return reward_metrics([{"score_judge": 3.0, "wer": 0.5, "reward_text": 2.0, "reward_speech": 4.0}])


def sums() -> dict[str, Any]:
    masks = {"text": torch.tensor([[True, False]]), "speech": torch.tensor([[False, True]])}
    logp = torch.tensor([[-1.0, -2.0]])
    given = policy_sums(logp, masks, rollout_logp_RT=logp - 0.1, entropy_RT=-logp, reference_RT=logp)
    return policy_metrics({name: value.item() for name, value in given.items()})


def loss() -> dict[str, Any]:
    half, anchor = 0.5 * ones(2, 1), torch.tensor([[False], [True]])
    inputs = LossInputs(-ones(2, 1), -ones(2, 1), ones(2, 1), half, half, half, half, anchor, -ones(2, 1), ones(2, 1))
    outputs = [combined_loss(inputs, 0.5, LossCoefficients(mode=mode)) for mode in SURROGATES]
    return {f"actor/{name}": value for output in outputs for name, value in output.parts.items()}


def pairs() -> dict[str, Any]:
    step: Any = SimpleNamespace(columns={"old_log_probs": -ones(2, 2)})
    step.text = torch.tensor([[True, False]] * 2)
    step.speech = ~step.text
    both = Pairs([0], [1], {"unscored": 0, "tied": 1, "below_gap": 0})
    terms = pair_terms(both, ones(2, 2), -ones(2, 2), -ones(2, 2), "dpo", PairsConfig())
    return pair_metrics(step, both, terms, 0.1)


def rows() -> dict[str, Any]:
    plan = object.__new__(ActorUpdate)
    plan.keys, plan.new_rows, plan.anchors, plan.mini_batches = ["a"], [{}], 1, [[0]]
    plan.actor = SimpleNamespace(ppo_epochs=1)
    return plan.metrics()


def written() -> set[str]:
    """Names in the code that look like a metric's, as patterns: an f-string's fields match anything."""
    found = set()
    for folder in ("method", "trainer", "integration"):
        for file in (ROOT / "wavalign_ext" / folder).glob("*.py"):
            if file.stem == "metric_names":
                continue
            tree = ast.parse(file.read_text())
            within = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "*" for part in node.values]
                    found.add("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within:
                    found.add(node.value)
    return {name for name in found if LOGGED.fullmatch(name)} - {PREFIX} - THEIR_OWN


def matches(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".+"), name) is not None


MAKERS = (mixing, rollouts, rewards, sums, loss, pairs, rows)
LISTED = [name for group in GROUPS for metric in group.metrics for name in metric.names]


@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_logged_has_an_entry(maker: Any) -> None:
    made = maker()
    assert len(made) > 3
    assert [name for name in made if find(name) is None] == []


def test_each_entry_is_logged() -> None:
    made = {name for maker in MAKERS for name in maker()}
    found = {find(name) for name in made}
    # Made by a job alone: the held-out NLL, which is written as a name in the code.
    assert [n for n in LISTED if find(n) not in found and not any(matches(p, n) for p in written())] == []
    assert len(set(LISTED)) == len(LISTED)


def test_every_name_in_the_code_has_an_entry() -> None:
    names = written()
    assert "val-anchor/nll_*" in names and "wavalign/lambda" in names
    assert [pattern for pattern in names if not any(matches(pattern, name) for name in LISTED)] == []


def test_a_recorded_step_has_no_name_that_the_page_lacks(tmp_path: Path) -> None:
    synthetic_run.make_run(tmp_path, steps=10, groups=2, each=2, audio=0)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = board.Tags()["scalars"]
    assert len(tags) > 20
    assert [tag for tag in tags if find(tag) is None] == []


def test_what_the_report_draws_is_on_the_page() -> None:
    sections = (curves.MIXING, curves.DRIFT, curves.LENGTHS, curves.FAILURES, curves.TRAINING)
    charts = [chart for section in sections for chart in section] + [curves.HELD_OUT_NLL, curves.HELD_OUT_WER]
    tags = {tag for chart in charts for line in chart.lines for tag in line.tags}
    ours = {tag for tag in tags if not tag.startswith(("rollouts/", "validation/"))}  # of the dumps, not of the log
    assert len(ours) > 30
    assert [tag for tag in ours if find(tag) is None] == []


def test_the_page_is_what_the_table_says() -> None:
    """``make pages`` writes it anew."""
    assert markdown() == (ROOT / "docs/metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["wavalign/lamda", "reward/", "val-anchor/nll_music", "actor/kl"])
def test_an_unknown_name_has_no_entry(name: str) -> None:
    assert find(name) is None
