"""How a run ends before it is done: one line that says why, and how to go on. Imports neither verl nor Ray."""

import re
import time
from collections.abc import Callable

from wavalign_ext.integration.processes import lasting

GO_ON = "start it again to go on from its last checkpoint"
SEEN = 300  # characters of another library's message in the last line


class RunEnded(RuntimeError):
    """The run must not go on. Its message is a line for the user, with ``GO_ON`` behind it if it does not say more."""


class StopAsked(RunEnded):
    """Somebody asked the run to end, by a signal."""


class WorkerLost(RunEnded):
    """A worker that the run needs is gone, or a step does not end."""


def last_line(error: BaseException) -> str:
    """What ended a run, in a line without ``wavalign:``, whichever process it came from.

    Ray wraps a remote error: the cause is inside. Ours are written for the user; of others, the first line is shown.
    """
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, RunEnded) or isinstance(error, RunEnded):
        text = " ".join(str(cause if isinstance(cause, RunEnded) else error).split())
        return text if "start" in text else f"{text}: {GO_ON}"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or ["no message"]
    # Ray's errors of a lost process begin with a sentence; a traceback ends with what was raised.
    told = lines[-1] if lines[0].startswith(("Traceback", "ray::", "\x1b")) else lines[0]
    if actor := re.search(r"class_name: (\S+)", str(cause)):
        name = actor.group(1).rpartition(".")[2]
        told = f"{lasting(f'ray::{name}') or name} has died ({told[:SEEN].rstrip('.')})."
    if type(cause).__module__.startswith("ray"):
        return f"Ray says: {told[:SEEN]} The worker's own lines stand above; {GO_ON}"
    if isinstance(cause, ValueError) and type(cause).__module__.startswith("wavalign_ext"):
        return told  # a refusal: says what is allowed
    return f"{type(cause).__name__}: {told[:SEEN]}. Its traceback is above; {GO_ON}"


class AwakeClock:
    """Seconds that pass while somebody looks at the clock at least every ``longest_gap_s``.

    A run that was suspended, by a batch system or a laptop's lid, has not been silent for that long.
    """

    def __init__(self, longest_gap_s: float, monotonic: Callable[[], float] | None = None) -> None:
        self.monotonic = monotonic or (lambda: time.monotonic())
        self.longest_gap_s, self.seen, self.now = longest_gap_s, self.monotonic(), 0.0

    def __call__(self) -> float:
        seen = self.monotonic()
        self.now += min(seen - self.seen, self.longest_gap_s)
        self.seen = seen
        return self.now
