"""``wavalign config``: all keys of every recipe, and the page that is made of them."""

from pathlib import Path

import pytest
import wavalign_recipes

from wavalign_ext.checks import show_config
from wavalign_ext.config import WavAlignConfig
from wavalign_ext.schema import Section, sections
from wavalign_ext.verl_keys import VerlKeys

RECIPES = sorted(path.stem for path in (Path(wavalign_recipes.__path__[0]) / "recipe").glob("*.yaml"))
PAGE = Path(__file__).parents[2] / "docs/config.md"


def keys(cls: type[Section], prefix: str = "") -> set[str]:
    """Those that hold a value: no section."""
    every = [key for key, _ in sections(cls, prefix)]
    return {key for key in every if not any(other.startswith(f"{key}.") for other in every)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_key_of_a_recipe_has_its_lines(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_config.main([recipe]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"+recipe={recipe}"
    of_keys = [(n, line) for n, line in enumerate(lines) if " = " in f"{line} " and not line.startswith(" " * 8)]
    found = {line.split()[0]: number for number, line in of_keys}
    assert found.keys() == keys(WavAlignConfig, "wavalign.") | keys(VerlKeys)
    assert max(len(line) for line in lines if " " in line.strip()) < 200
    behind = lines[found["wavalign.mixing.lambda_max"] + 1 :][:2]
    assert behind == ["        Takes a number in [0, 1].", "        The most that an adaptive λ can be."]


def test_values_are_those_of_the_recipe_with_its_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "wavalign_fixed_mix",
        "wavalign.kl.text=0.25",
        "actor_rollout_ref.rollout.n=7",
        "wavalign.reward.scale=[0,10]",
    ]
    assert show_config.main(words) == 0
    out = capsys.readouterr().out
    for line in (
        "wavalign.mixing.type = fixed (default adaptive)",
        "wavalign.kl.text = 0.25 (default 0.001)",
        "wavalign.reward.scale = [0, 10] (default [1, 5])",
        "wavalign.watchdog.poll_interval_s = 5",
        "actor_rollout_ref.rollout.n = 7",
        "actor_rollout_ref.actor.ppo_mini_batch_size = 16",
    ):
        assert f"    {line}\n" in out


def test_without_a_recipe_an_override_is_of_the_default_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_config.main(["wavalign.seeded_sampling=false"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("+recipe=wavalign wavalign.seeded_sampling=false\n")
    assert "wavalign.seeded_sampling = false (default true)" in out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["wavalign_dream"], "wavalign_dream"),
        (["wavalign", "wavalign.kl.text=-1"], "wavalign.kl.text=-1 is not allowed: a number ≥ 0"),
        (["wavalign", "wavalign.mixing.gate_slope=5"], "gate_slope"),
    ],
)
def test_a_recipe_that_cannot_run_ends_in_one_line(words: list[str], why: str, capsys) -> None:
    assert show_config.main(words) == 2
    said = capsys.readouterr()
    assert (
        said.out == ""
        and why in said.err.splitlines()[-1]
        and said.err.splitlines()[-1].startswith("wavalign config: ")
    )


def test_the_page_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    """``make pages`` writes it anew."""
    assert show_config.main(["--markdown", "wavalign/hardware=cpu"]) == 0
    made = capsys.readouterr().out
    assert made == PAGE.read_text(encoding="utf-8")
    for key in keys(WavAlignConfig, "wavalign.") | keys(VerlKeys):
        assert f"\n| `{key}` | " in made
