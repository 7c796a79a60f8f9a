"""Small inputs from people's reports, which lie beside the repository; tests that want them skip where they do not."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def field(name: str) -> Path:
    """A file of ``shared/field`` in the repository or in a folder above it."""
    for folder in ROOT, *ROOT.parents[:2]:
        if (path := folder / "shared" / "field" / name).exists():
            return path
    pytest.skip(f"shared/field/{name} is not beside the repository")
