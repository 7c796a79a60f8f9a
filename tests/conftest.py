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
