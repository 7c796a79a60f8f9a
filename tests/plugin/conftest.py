"""Every test here runs in a folder of its own: recipes look for their run in the current one, where one may lie.

And a run that begins in a test's process, as every preflight does, leaves neither variables nor a platform behind.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    import verl.plugin.platform.platform_manager as manager

    before, platform = dict(os.environ), manager.get_platform()
    yield
    os.environ.clear()
    os.environ.update(before)
    manager._current_platform = platform
