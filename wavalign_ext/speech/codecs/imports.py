"""What a checkout's code imports, read from its text: nothing is imported to find out what is missing."""

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ON_PYPI = {"hydra": "hydra-core", "yaml": "pyyaml", "whisper": "openai-whisper"}  # where the names differ


def names_in(text: str) -> list[str]:
    """The dotted names that a HyperPyYAML file builds or calls."""
    return re.findall(r"!(?:new|name|apply):([\w.]+)", text)


def missing_packages(roots: Sequence[Path], starts: Iterable[str]) -> list[str]:
    """Names on PyPI of what is not installed and will be imported with ``starts``, dotted names under ``roots``.

    Only what a module imports as it loads counts: not in functions, nor where a failure is caught or on a condition.
    """
    seen: set[str] = set()
    outside: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        file = _file(roots, name)
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # a package is imported before its modules
        if file is not None:
            waiting += _imports(file, name)
        elif not any((root / name.partition(".")[0]).exists() for root in roots):
            outside.add(name.partition(".")[0])
    return sorted(ON_PYPI.get(name, name) for name in outside if importlib.util.find_spec(name) is None)


def _file(roots: Sequence[Path], name: str) -> Path | None:
    stems = [root.joinpath(*name.split(".")) for root in roots]
    files = [file for stem in stems for file in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")]
    return next(filter(Path.is_file, files), None)


def _imports(file: Path, name: str) -> Iterator[str]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
