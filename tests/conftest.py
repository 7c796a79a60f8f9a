"""Fixtures shared by the tests."""

import os
from pathlib import Path
from typing import Any

import pytest

# Nothing here may look for a model hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# verl computes on the CPU in these tests, whatever the machine has.
os.environ.setdefault("VERL_PLATFORM", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes run the tests: torch's threads, which spin while they wait, would take each other's core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
JOBS = ("tests/e2e/", "tests/extension/")  # whole jobs: each needs memory for several processes, and Ray


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes: jobs first, and last the modules that need the pocket model, which the jobs build."""
    if not hasattr(config, "workerinput"):  # pytest-xdist gives it to its processes
        return
    waiting = {item.path for item in items if "pocket" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: 0 if item.nodeid.startswith(JOBS) else 2 if item.path in waiting else 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All jobs on one process, so that no two run at once; a module on one, so that its fixtures are made once.

    Not by xdist_group: pytest-xdist 3.8 writes it to a name of the test that pytest 9 no longer reads.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "jobs" if nodeid.startswith(JOBS) else nodeid.split("::", 1)[0]

    return ByModule(config, log)


@pytest.fixture(scope="session")
def pocket() -> Path:
    """The embedded default's assets, built once (about 4 minutes on 2 cores) and kept in the cache."""
    from wavalign_ext.pocket.build import build

    return build()


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers (reward terms, codecs, encoders) is known to that test only."""
    import wavalign_ext.rewards
    import wavalign_ext.speech.codecs
    import wavalign_ext.speech.encoders  # noqa: F401  (all three: their own parts are registered first)
    from wavalign_ext.rewards import registry
    from wavalign_ext.speech.codecs import base as codecs
    from wavalign_ext.speech.encoders import base as encoders

    for module, name in ((registry, "_TERMS"), (codecs, "_CODECS"), (encoders, "_ENCODERS")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
