"""A step that is not finite, has exploded, or is not whole is named; some of them in a row end the run."""

import math
from typing import Any

import pytest

from wavalign_ext.config import HealthConfig
from wavalign_ext.trainer.health import Diverged, Health, NotWhole, check_whole

FINE = {
    "actor/loss": 0.3,
    "actor/grad_norm": 0.9,
    "actor/anchor_nll_text": 0.1,
    "actor/entropy_text": 0.4,
    "wavalign/nothing_scored": 0.0,
}


def health(**settings: Any) -> Health:
    made = Health(HealthConfig(**settings))
    for step in range(5):
        made.look(step, FINE)
    assert made.problem is None
    return made


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("actor/loss", math.nan, "actor/loss is nan"),
        ("actor/grad_norm", math.inf, "actor/grad_norm is inf"),
        ("actor/pg_loss", -math.inf, "actor/pg_loss is -inf"),
        ("actor/loss", 6000.0, "actor/loss is 6000, where 0.3 is usual (wavalign.health.explosion_factor=10)"),
        ("actor/loss", -11.0, "actor/loss is 11, where 0.3 is usual"),
        ("actor/grad_norm", 10.5, "actor/grad_norm is 10.5, where 0.9 is usual"),
        ("actor/anchor_nll_text", 10.5, "actor/anchor_nll_text is 10.5, where 0.1 is usual"),
        ("actor/entropy_text", 4.5, "actor/entropy_text is 4.5, where 0.4 is usual"),
        ("wavalign/nothing_scored", 1.0, "no answer has a reward, so only the anchor is trained"),
    ],
)
def test_what_is_not_healthy(name: str, value: float, told: str) -> None:
    made = health()
    made.look(6, FINE | {name: value})
    assert made.problem is not None and made.problem.startswith(told)
    made.look(7, FINE)
    assert made.problem is None and made.unhealthy == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("actor/loss", 9.9),
        ("actor/grad_norm", 8.9),
        ("actor/entropy_text", 3.9),
        ("actor/lr", 1e9),
        ("critic/x", math.nan),
    ],
)
def test_what_a_healthy_run_may_do(name: str, value: float) -> None:
    made = health()
    made.look(6, FINE | {name: value})
    assert made.problem is None


def test_the_last_of_some_in_a_row_ends_the_run(capsys: pytest.CaptureFixture) -> None:
    made, bad = health(stop_after_steps=2), FINE | {"actor/loss": math.nan}
    for step in (6, 8):  # a healthy one between them
        made.look(step, bad)
        made.look(step + 1, FINE)
    made.look(10, bad)
    with pytest.raises(Diverged, match=r"actor/loss is nan: step 11 is the last of 2 unhealthy ones"):
        made.look(11, bad)
    assert "step 11 is not healthy (2 of 2): actor/loss is nan" in capsys.readouterr().out


def test_a_bad_step_is_no_measure_and_a_resumed_run_keeps_its_own() -> None:
    made, bad = health(stop_after_steps=99), FINE | {"actor/loss": 500.0}
    for step in range(60):
        made.look(step, bad)
    resumed = Health(HealthConfig())
    resumed.load_state_dict(made.state_dict() | {"a name of another version": [1.0]})
    resumed.look(61, bad)
    assert resumed.problem is not None and "0.3 is usual" in resumed.problem


def test_the_first_step_has_nothing_to_be_compared_with() -> None:
    made = Health(HealthConfig())
    made.look(1, FINE | {"actor/loss": 12.0})
    assert made.problem is None


def test_without_a_preference_no_score_is_missed() -> None:
    made = Health(HealthConfig(), expects_scores=False)
    made.look(1, FINE | {"wavalign/nothing_scored": 1.0})
    assert made.problem is None


PROMPTS = {"a": (7, 2), "b": (4, 2), "c": (9, 2)}
ALL = ["a_0_0", "a_1_0", "b_0_0", "b_1_0", "b_1_1", "c_0_0", "c_1_0"]  # b's second answer took two turns


def looked(keys: list[str], wanted: int = 3, share: float = 0.0) -> tuple[float, dict[str, int]]:
    return check_whole(5, keys, PROMPTS, wanted, HealthConfig(missing_rollouts=share))


def test_a_whole_step() -> None:
    assert looked(ALL) == (0.0, {})


def test_what_is_missing_is_named_and_ends_the_run() -> None:
    with pytest.raises(NotWhole, match=r"step 5 has 3 of 6 rollouts; missing are 1 of data row 7, 2 of data row 9:"):
        looked(["a_1_0", "b_0_0", "b_1_0"])


def test_a_share_may_be_missing_and_is_counted(capsys: pytest.CaptureFixture) -> None:
    assert looked(["a_1_0", "b_0_0", "b_1_0"], share=0.5) == (0.5, {"c": 9})
    assert "step 5 has 3 of 6 rollouts; missing are 1 of data row 7, 2 of data row 9\n" in capsys.readouterr().out
    with pytest.raises(NotWhole):
        looked(["b_0_0", "b_1_0"], share=0.5)


def test_prompts_that_a_filter_dropped_are_not_missing() -> None:
    assert looked(["a_0_0", "a_1_0", "c_0_0", "c_1_0"], wanted=2) == (0.0, {})
    with pytest.raises(NotWhole, match="2 of data row 9"):
        looked(["a_0_0", "a_1_0"], wanted=2)
