"""Models that several terms or rows share: loaded once per process, called in a thread of their own."""

import asyncio
import importlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any


class ModelThread:
    """A model, loaded on first use, that one thread of its own calls.

    One thread, because recognisers keep state from one call to the next, and because the model's library already uses
    the cores. Calls queue; the event loop goes on.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._model: Any = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="wavalign-reward")

    def load(self) -> None:
        """Load it now, so that wrong arguments show before the first row."""
        self._pool.submit(self._run, bool, ()).result()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(model, *arguments)``, in the thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._run, function, arguments)

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self._model is None:
            self._model = self._load()
        return function(self._model, *arguments)


_SHARED: dict[str, ModelThread] = {}
_LOCK = threading.Lock()


def shared_model(key: str, load: Callable[[], Any]) -> ModelThread:
    """This process's model ``key``."""
    with _LOCK:
        if key not in _SHARED:
            _SHARED[key] = ModelThread(load)
        return _SHARED[key]


def optional_module(name: str, term: str, packages: str) -> ModuleType:
    """Import ``name`` for ``term``; raises ImportError saying what to install when it, or what it needs, is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise ImportError(
            f"reward term {term!r} needs {missing!r}, which is not installed: pip install --no-deps {packages}, "
            "or take the term out of wavalign.reward.terms",
            name=missing,
        ) from error
