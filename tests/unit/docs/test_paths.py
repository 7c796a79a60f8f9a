"""What README and docs name is there: files, folders, tests, keys and metrics."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "benchmarks|docs|examples|kernels|recipes|requirements|tests|wavalign_ext"
PACKAGES = sorted(path.name for path in (ROOT / "wavalign_ext").iterdir() if (path / "__init__.py").is_file())
NAMED = re.compile(rf"(?<![\w/.…])((?:{FOLDERS}|{'|'.join(PACKAGES)})/[\w/.-]+\.(?:py|md|yaml|toml|txt|csv|png))\b")
# Not in the repository: written by a run, a user or another project.
OTHERS = re.compile(r"^(data/|report/report|evaluation/)|benchmarks/results/(gpu/DATE|evidence_\*)")


def ids(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    places = (ROOT, ROOT / "wavalign_ext", page.parent)
    names = {name for name in NAMED.findall(page.read_text()) if not OTHERS.search(name)}
    assert sorted(name for name in names if not any((place / name).exists() for place in places)) == []


def test_tests_that_the_method_names_are_there() -> None:
    text = (ROOT / "docs" / "method.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = set(re.findall(r"`(test_\w+)`", text))
    assert names and sorted(name for name in names if f"def {name}(" not in sources) == []


def test_keys_that_the_pages_name_are_in_the_recipe() -> None:
    base = OmegaConf.load(ROOT / "recipes" / "wavalign_recipes" / "wavalign" / "base.yaml")
    keys = {
        (page.name, key) for page in PAGES for key in re.findall(r"`wavalign\.([a-z_.]+?)\.?[`=]", page.read_text())
    }
    assert len(keys) > 20
    own = ("reward.terms.", "layout.", "codec.", "input_codec.")  # the keys of a term, a layout, a codec
    known = {key for key in keys if not key[1].startswith(own) and key[1] != "json"}  # a file of a checkpoint
    missing = object()
    node = OmegaConf.to_container(base.wavalign, resolve=False)

    def find(key: str) -> object:
        place: object = node | {"layout": None}
        for part in key.split("."):
            place = place.get(part, missing) if isinstance(place, dict) else missing
        return place

    assert sorted(entry for entry in known if find(entry[1]) is missing) == []


def test_metrics_that_the_pages_name_are_in_the_table() -> None:
    named = re.compile(r"`((?:wavalign|actor|val-anchor)/[\w-]+)`")
    known = set(named.findall((ROOT / "docs" / "metrics.md").read_text()))
    used = {(page.name, name) for page in PAGES for name in named.findall(page.read_text())}
    assert len(used) > 20 and sorted(entry for entry in used if entry[1] not in known) == []


def test_the_readme_is_no_longer_than_a_newcomer_reads() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_the_tree_in_the_readme_is_the_folder() -> None:
    block = (ROOT / "README.md").read_text().split("```\nwavalign_ext/\n", 1)[1].split("\n```", 1)[0]
    lines = [line for line in block.splitlines() if line.startswith("  ")]
    named = {word for line in lines for word in re.findall(r"\b[a-z_]+(?:/|\.py)(?=\s)", line)}
    package = ROOT / "wavalign_ext"
    there = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    there |= {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
    assert named == there
