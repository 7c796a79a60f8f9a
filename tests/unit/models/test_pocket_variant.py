"""A variant of the embedded default is built once, whole or not at all, under a name that follows its sources."""

import json
from pathlib import Path

import pytest

from wavalign_ext.models.pocket_variant import build_variant, variant_dir


@pytest.fixture(autouse=True)
def pocket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pocket model's build, which is there already."""
    monkeypatch.setenv("WAVALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which the build sets where it is not
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("wavalign_ext.pocket.build.build", lambda: tmp_path / "pocket")
    return tmp_path / "pocket"


def test_it_is_built_once_and_whole_or_not_at_all(pocket: Path, tmp_path: Path) -> None:
    out, made = tmp_path / "cache" / "variant", []

    def make(assets: Path, work: Path) -> dict[str, int]:
        assert assets == pocket and list(work.iterdir()) == []
        (work / "weights").write_text("half")
        made.append(work)
        if len(made) == 1:
            raise RuntimeError("killed")
        return {"parameters": 3}

    with pytest.raises(RuntimeError, match="killed"):
        build_variant(out, "it", make)
    assert not out.exists()
    assert build_variant(out, "it", make) == build_variant(out, "it", make) == out
    assert len(made) == 2 and not made[-1].exists()
    report = json.loads((out / "report.json").read_text())
    assert report["parameters"] == 3 and report["seconds"] >= 0


def test_another_source_is_another_folder(tmp_path: Path) -> None:
    source = tmp_path / "model.py"
    source.write_text("layers = 2")
    first = variant_dir("pocket-ears", [source], "pocket_ears")
    assert first == variant_dir("pocket-ears", [source], "pocket_ears") and first.parent == tmp_path / "cache"
    assert first != variant_dir("pocket-ears", [source], "pocket_parallel")
    source.write_text("layers = 3")
    assert first != variant_dir("pocket-ears", [source], "pocket_ears")
