"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest

# Nothing here may look for a model hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# verl computes on the CPU in these tests, whatever the machine has.
os.environ.setdefault("VERL_PLATFORM", "cpu")


@pytest.fixture(scope="session")
def pocket() -> Path:
    """The embedded default's assets, built once (about 6 minutes on 2 cores) and kept in the cache."""
    from wavalign_ext.pocket.build import build

    return build()
