"""Whatever ends a run becomes one line, which says how to go on."""

import pytest

from wavalign_ext.checkpoints.whole import CheckpointError
from wavalign_ext.integration.ending import GO_ON, AwakeClock, StopAsked, WorkerLost, last_line
from wavalign_ext.trainer.health import NotWhole


class FromAfar(Exception):
    """As Ray hands on what a remote call raised."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"ray::TaskRunnerV1.run()\n  traceback\n{cause}")
        self.cause = cause


class RayLost(Exception):
    __module__ = "ray.exceptions"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (WorkerLost("engine 1 has died"), f"engine 1 has died: {GO_ON}"),
        (FromAfar(WorkerLost("engine 1\nhas died")), f"engine 1 has died: {GO_ON}"),
        (
            FromAfar(StopAsked("stopped by SIGTERM; step 3 is saved: start it again")),
            "stopped by SIGTERM; step 3 is saved: start it again",
        ),
        (NotWhole("3 of 4 rollouts: start again"), "3 of 4 rollouts: start again"),
        (FromAfar(CheckpointError("a is damaged: delete it")), "a is damaged: delete it"),
        (
            FromAfar(OSError(28, "No space left on device")),
            f"OSError: [Errno 28] No space left on device. Its traceback is above; {GO_ON}",
        ),
        (
            RayLost("The actor died unexpectedly.\n\tclass_name: cls.<locals>.X"),
            f"Ray says: X has died (The actor died unexpectedly). The worker's own lines stand above; {GO_ON}",
        ),
        (
            RayLost("The actor died unexpectedly.\n\tclass_name: cls.<locals>.WorkerDict"),
            "Ray says: a training worker has died (The actor died unexpectedly). "
            f"The worker's own lines stand above; {GO_ON}",
        ),
        (ValueError(""), f"ValueError: no message. Its traceback is above; {GO_ON}"),
    ],
)
def test_the_last_line(error: BaseException, line: str) -> None:
    assert last_line(error) == line


def test_a_suspended_run_was_not_silent() -> None:
    times = iter([0.0, 10.0, 20.0, 50.0, 5000.0, 5010.0])
    clock = AwakeClock(longest_gap_s=30, monotonic=lambda: next(times))
    assert [clock() for _ in range(5)] == [10, 20, 50, 80, 90]
