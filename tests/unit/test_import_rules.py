"""Which module may import what, how long a file may be, and what the names of earlier versions end in."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wavalign_ext.config import RENAMED, ConfigError, WavAlignConfig
from wavalign_ext.moved import MOVED, PACKAGE

ROOT = Path(__file__).parents[2]
# folder whose modules are imported by their path below it: the packages, or scripts, that it holds
SOURCES = {"": ("wavalign_ext",), "kernels": ("wavalign_kernels",), "benchmarks": ("*",)}
FRAMEWORKS = ("verl", "ray", "vllm")
MOST_LINES = 400


def modules() -> dict[str, Path]:
    """Our modules by the name that they are imported by."""
    found = {}
    for folder, tops in SOURCES.items():
        base = ROOT / folder
        for file in (file for top in tops for part in base.glob(top) for file in [part, *part.rglob("*.py")]):
            if file.suffix == ".py":
                parts = file.relative_to(base).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Those that run when the module does: not in a function, not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(node.orelse, []))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node)


def targets(node: ast.Import | ast.ImportFrom, package: list[str]) -> Iterator[str]:
    """The dotted names that a statement may load, ``package`` being that of its module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = package[: len(package) - node.level + 1] if node.level else []
    source = ".".join([*base, *([node.module] if node.module else [])])
    yield source
    yield from (f"{source}.{alias.name}" for alias in node.names)


def graph() -> dict[str, set[str]]:
    """Module: those of ours that it imports. A parent package counts where it is not the module's own."""
    known, edges = modules(), {}
    for name, file in known.items():
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        found = {target for node in imports(ast.parse(file.read_text())) for target in targets(node, package)}
        found |= {target.rpartition(".")[0] for target in found}
        edges[name] = {other for other in found & known.keys() if other != name and not name.startswith(f"{other}.")}
        # `from package import module` loads the module, not a name of the package
        edges[name] |= {target for target in found & known.keys() if target.startswith(f"{name}.")}
    return edges


def first_circle(edges: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def loaded(statement: str, names: tuple[str, ...]) -> set[str]:
    """Which of ``names`` a fresh interpreter has loaded after ``statement``."""
    code = f"import sys\n{statement}\nprint(*({{*{names!r}}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_no_module_imports_itself_through_others() -> None:
    edges = graph()
    assert "wavalign_ext.method.token_weights" in edges["wavalign_ext.method.anchor"]
    assert "wavalign_kernels.checks" in edges and "evidence.loop" in edges
    rooms = {f"wavalign_ext.{path.name}" for path in (ROOT / "wavalign_ext").iterdir() if any(path.glob("*.py"))}
    assert {"wavalign_ext.parallel", "wavalign_ext.models"} <= rooms <= edges.keys(), "a folder without __init__.py"
    assert first_circle(edges) == []


def test_the_search_finds_a_circle() -> None:
    edges = graph()
    edges["wavalign_ext.config"] = {"wavalign_ext.method.mixing"}
    assert {"wavalign_ext.config", "wavalign_ext.method.mixing"} <= set(first_circle(edges))


def test_the_method_imports_no_framework() -> None:
    names = [name for name in modules() if name.startswith("wavalign_ext.method")]
    assert len(names) > 7
    assert loaded(f"import {', '.join(names)}", (*FRAMEWORKS, "torch")) == {"torch"}


@pytest.mark.parametrize("module", ["wavalign_ext.config", "wavalign_ext.verl_keys", "wavalign_ext.schema"])
def test_the_configuration_imports_neither_torch_nor_a_framework(module: str) -> None:
    assert loaded(f"import {module}", (*FRAMEWORKS, "torch", "numpy", "pydantic")) == {"pydantic"}


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    folders = ("wavalign_ext", "kernels", "recipes", "benchmarks", "tests", "examples")
    kinds = {".py", ".c", ".h", ".js", ".sh", ".yaml"}
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in kinds]
    assert len(files) > 200
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {name: count for name, count in lengths.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_import_path_ends_in_one_line_that_names_the_new_one(old: str, new: str) -> None:
    assert PACKAGE + new in modules(), "the table points at nothing"
    with pytest.raises(ModuleNotFoundError) as caught:
        __import__(PACKAGE + old)
    assert str(caught.value) == f"{PACKAGE}{old} has moved: import {PACKAGE}{new}"


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_ends_in_one_line_that_names_the_new_one(old: str, new: str) -> None:
    *sections, name = old.split(".")
    node = {name: 0.5}
    for section in sections:
        node = {section: node}
    with pytest.raises(ConfigError) as caught:
        WavAlignConfig.from_mapping({"layout": "pocket", "codec": {"type": "mel_vq"}, **node})
    assert str(caught.value) == f"wavalign.{old}=0.5 is not allowed: this key is wavalign.{new} now."
