"""The embedded default: a small spoken dialogue model, its voices, its codec and its data, made on this machine.

``python -m wavalign_ext.pocket`` builds it; the recipes build it when it is missing. Importing this is cheap.
"""

import ast
import hashlib
import os
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HEARD_UNITS = 512
ANSWER_CODES = 512
SAMPLE_RATE = 16000
DATA_SOURCE = "wavalign/pocket"

# What the result depends on beside our own source, and what of the latter it does not depend on.
_NO_PARTS = ("__main__.py", "measure.py")
_PARTS = ("torch", "transformers", "ttspico", "pocketsphinx", "scikit-learn")


def pocket_dir() -> Path:
    """The folder of the built assets, named by a hash of what makes them: source code, layout, package versions.

    Sums differ in their last bits between CPUs, so the model of one name is not the same everywhere. Comments,
    docstrings and imports do not count, so that moving or explaining code rebuilds nothing. The folder lies in
    ``$WAVALIGN_CACHE``, by default ``~/.cache/wavalign``.
    """
    digest = hashlib.sha256(_source())
    for package in _PARTS:
        try:
            digest.update(f"{package}={version(package)}".encode())
        except PackageNotFoundError:
            digest.update(f"{package} is missing".encode())
    root = Path(os.environ.get("WAVALIGN_CACHE", "~/.cache/wavalign")).expanduser()
    return root / f"pocket-{digest.hexdigest()[:12]}"


@cache  # a start asks a dozen times, and parsing takes a quarter of a second
def _source() -> bytes:
    """Our own part of what makes the assets: code and layout."""
    from omegaconf import OmegaConf

    here = Path(__file__).parent
    codecs = here.parent / "speech" / "codecs"
    parts = [source for source in sorted(here.glob("*.py")) if source.name not in _NO_PARTS]
    made = [
        _code(path.read_text(encoding="utf-8")) for path in (*parts, codecs / "fitted.py", codecs / "unit_selection.py")
    ]
    layout = OmegaConf.create((resources.files("wavalign_recipes") / "layout" / "pocket.yaml").read_text())
    return "".join([*made, OmegaConf.to_yaml(layout, sort_keys=True)]).encode()


def _code(source: str) -> str:
    """What a module does: its syntax tree without docstrings and imports."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                part
                for part in body
                if not isinstance(part, ast.Import | ast.ImportFrom)
                and not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return ast.dump(tree)


def encode_question(wave: "np.ndarray", folder: Path | None = None) -> list[int]:
    """Any recording as the units that a prompt holds; ``ResolvedLayout.user_speech_prompt`` makes them a message.

    Args:
        wave: mono float32 at ``SAMPLE_RATE``, as :func:`wavalign_ext.speech.codecs.base.load_audio` gives it.
        folder: built assets, by default those of :func:`pocket_dir`.
    """
    from wavalign_ext.speech.codecs import load_codec

    return load_codec({"type": "units", "path": (folder or pocket_dir()) / "units"}).encode(wave)
