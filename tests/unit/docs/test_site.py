"""The site of docs/: it builds without a warning, loads nothing from the network, and a wrong link ends its build."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_in_it(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 10
    assert [page for page in pages if not (site / page.with_suffix(".html")).is_file()] == []


def test_the_api_has_what_docstrings_say(site: Path) -> None:
    text = (site / "api" / "method.html").read_text()
    assert "population std" in text and ":func:" not in text and ":class:" not in text
    kernels = (site / "api" / "kernels.html").read_text()
    assert "wavalign_loss" in kernels and "(T,) integer: NONE, PREFERENCE or ANCHOR" in kernels
    assert "register_term" in (site / "api" / "rewards.html").read_text()


def test_code_in_a_table_keeps_its_bars(site: Path) -> None:
    text = (site / "glossary.html").read_text()
    assert "<code>&lt;|begin_of_audio|&gt;</code>" in text and "\\|" not in text


def test_it_loads_nothing_from_the_network(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(?:https?:)?//[^"]*"|url\(["\']?(?:https?:)?//')
    found = {path.name: loads.findall(path.read_text()) for path in site.rglob("*") if path.suffix in (".html", ".css")}
    assert {name: links for name, links in found.items() if links} == {}


@pytest.mark.parametrize(
    "links",
    [["nowhere.md", "method.md#nowhere", "images/nowhere.png"], ["../wavalign_ext/nowhere.py"]],
    ids=["within the pages", "to the code"],
)
def test_a_wrong_link_ends_the_build(tmp_path: Path, links: list[str]) -> None:
    for name in ("wavalign_ext", "kernels", "benchmarks", "recipes", "mkdocs.yml"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    glossary = tmp_path / "docs" / "glossary.md"
    glossary.write_text(glossary.read_text() + "\n".join(f"[a]({link})" for link in links))
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert [link for link in links if link.rsplit("#", 1)[-1] not in done.stderr] == []
