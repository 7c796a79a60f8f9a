"""An event loop whose clock does not run: where all that is left is waiting, it is set forward to what is waited for.

Sleeps, timeouts and deadlines of minutes take no time, and none of them depends on how busy the machine is. Client and
server must be on the same loop; what threads do (``asyncio.to_thread``) is waited for.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

GRACE_S = 0.002  # real time for the kernel to hand over what was written to a loopback socket


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self.now, self.threads_at_work = 1000.0, 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        self.threads_at_work += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._one_thread_less)
        return future

    def _one_thread_less(self, _: Any) -> None:
        self.threads_at_work -= 1


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: FakeTimeLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or self.loop.threads_at_work:
            return super().select(None if timeout is None or timeout > 0 else 0)
        ready = super().select(0)
        if ready or timeout <= 0:
            return ready
        ready = super().select(GRACE_S)
        if not ready:
            self.loop.now += timeout
        return ready


def run(main: Coroutine[Any, Any, Any], debug: bool = False) -> Any:
    """``asyncio.run`` without waiting."""
    with asyncio.Runner(loop_factory=FakeTimeLoop, debug=debug) as runner:
        return runner.run(main)
