"""``patches.after_import``: an action runs after its module's code, whatever else asks for the module before."""

import importlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from wavalign_ext.integration import patches
from wavalign_ext.integration.patches import PatchError, after_import

NAME = "module_that_is_waited_for"


@pytest.fixture(autouse=True)
def hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A hook of its own, and the module's folder on the path."""
    monkeypatch.setattr(patches, "_HOOK", patches._Hook())
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop(NAME, None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / f"{NAME}.py"
    path.write_text("value = 1\n")
    return path


def double(module: ModuleType) -> None:
    module.value *= 2  # type: ignore[attr-defined]


def fails(module: ModuleType) -> None:
    raise KeyError("nothing of that name")


def test_the_action_runs_after_the_module_s_code(source: Path) -> None:
    after_import(NAME, double)
    assert NAME not in sys.modules
    assert importlib.import_module(NAME).value == 2  # type: ignore[attr-defined]


def test_it_runs_at_once_on_a_module_that_is_there(source: Path) -> None:
    module = importlib.import_module(NAME)
    after_import(NAME, double)
    assert module.value == 2  # type: ignore[attr-defined]


def test_asking_for_the_module_first_loses_nothing(source: Path) -> None:
    after_import(NAME, double)
    for _ in range(2):
        assert importlib.util.find_spec(NAME) is not None
    assert importlib.import_module(NAME).value == 2  # type: ignore[attr-defined]


def test_two_actions_run_in_order(source: Path) -> None:
    after_import(NAME, double)
    after_import(NAME, lambda module: setattr(module, "value", module.value + 1))
    assert importlib.import_module(NAME).value == 3  # type: ignore[attr-defined]


def test_an_import_that_fails_is_tried_again(source: Path) -> None:
    after_import(NAME, double)
    source.write_text("raise ImportError('not yet')")
    with pytest.raises(ImportError, match="not yet"):
        importlib.import_module(NAME)
    source.write_text("value = 10000\n")
    importlib.invalidate_caches()
    assert importlib.import_module(NAME).value == 20000  # type: ignore[attr-defined]


def test_a_reloaded_module_is_patched_again(source: Path) -> None:
    after_import(NAME, double)
    module = importlib.import_module(NAME)
    assert importlib.reload(module).value == 2  # type: ignore[attr-defined]


def test_the_module_looks_as_it_does_without_us(source: Path) -> None:
    after_import(NAME, double)
    module = importlib.import_module(NAME)
    assert type(module.__loader__) is SourceFileLoader and module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__
    assert inspect.getsource(module) == "value = 1\n"


def test_an_action_that_fails_ends_the_import_with_one_line(source: Path) -> None:
    after_import(NAME, fails)
    with pytest.raises(PatchError, match=f"^wavalign: fails, after the import of {NAME}: KeyError.*nothing of that"):
        importlib.import_module(NAME)
    assert NAME not in sys.modules
    importlib.invalidate_caches()
    with pytest.raises(PatchError):  # nor does a second attempt get a module without it
        importlib.import_module(NAME)


def test_a_module_in_the_middle_of_another_thread_s_import_is_waited_for(source: Path) -> None:
    source.write_text("import builtins\nbuiltins.started.set()\nbuiltins.go_on.wait(10)\nvalue = 1\n")
    import builtins

    builtins.started, builtins.go_on = threading.Event(), threading.Event()  # type: ignore[attr-defined]
    importing = threading.Thread(target=importlib.import_module, args=(NAME,))
    importing.start()
    builtins.started.wait(10)  # type: ignore[attr-defined]
    threading.Timer(0.1, builtins.go_on.set).start()  # type: ignore[attr-defined]
    after_import(NAME, double)
    importing.join()
    del builtins.started, builtins.go_on  # type: ignore[attr-defined]
    assert sys.modules[NAME].value == 2  # type: ignore[attr-defined]


def test_a_module_in_the_middle_of_its_own_import_is_refused(source: Path) -> None:
    source.write_text(
        "from wavalign_ext.integration.patches import after_import\n"
        f"after_import({NAME!r}, lambda module: None)\nvalue = 1\n"
    )
    with pytest.raises(PatchError, match="imports the plugin"):
        importlib.import_module(NAME)


def test_a_namespace_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    after_import(NAME, double)
    with pytest.raises(ImportError, match="is a namespace package"):
        importlib.import_module(NAME)
