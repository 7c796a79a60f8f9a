"""``wavalign doctor`` on each recipe as it is shipped: its whole table, and no traceback."""

from pathlib import Path

import pytest
import wavalign_recipes

from wavalign_ext.checks import doctor

RECIPES = sorted(path.stem for path in (Path(wavalign_recipes.__path__[0]) / "recipe").glob("*.yaml"))
CHECKED = {"verl", "torch", "transformers", "plugin", "accelerator", "recipe", "platform", "model", "data", "disk"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_check_of_a_recipe_has_its_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("VERL_PLATFORM")
    status = doctor.main([f"+recipe={name}"])
    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines() if line.startswith(("ok", "warn", "FAIL", "skip"))]
    states = {words[1]: words[0] for words in lines}
    assert states.keys() >= CHECKED
    assert states["recipe"] == states["platform"] == "ok"
    assert "Traceback" not in said.out + said.err
    assert status == int("FAIL" in states.values())
