"""The command ``wavalign``: what it lists, what it passes on, and that asking for help loads nothing heavy."""

import re
import subprocess
import sys
import types

import pytest

from wavalign_ext import cli


def test_help_lists_commands_that_exist_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from wavalign_ext.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("False")
    for name in ("prepare", "pocket", "doctor", "listen", "report"):
        assert re.search(rf"^    {name} ", done.stdout, re.MULTILINE), name
    assert "+recipe=wavalign" in done.stdout


@pytest.mark.parametrize("name", [name for name, entry in cli.COMMANDS.items() if cli._exists(entry[0])])
def test_every_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["wavalign"])
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_command_without_a_module_is_neither_listed_nor_known(monkeypatch, capsys) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS, "dream": ("wavalign_ext.dreams.deep", "not written yet")})
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "dream" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["dream"])
    assert ended.value.code == 2 and "invalid choice: 'dream'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_arguments_go_to_the_command_and_its_status_comes_back(monkeypatch, returned: int | None, status: int) -> None:
    seen: list[list[str]] = []
    module = types.ModuleType("wavalign_told")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.main = lambda: seen.append(list(sys.argv)) or returned  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wavalign_told", module)
    monkeypatch.setattr(cli, "COMMANDS", {"tell": ("wavalign_told", "")})
    monkeypatch.setattr(sys, "argv", ["wavalign", "tell", "--a", "b"])
    assert cli.main() == status
    assert seen == [["wavalign tell", "--a", "b"]]
