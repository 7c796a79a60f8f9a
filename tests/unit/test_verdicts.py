"""The table of faults: a row for each, and only what ended as it must passes."""

import json
from pathlib import Path

import pytest


def test_each_fault_has_its_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "faults")
    import verdicts  # pyright: ignore[reportMissingImports]

    def told(name: str, status: int, left: list[str], line: str) -> str:
        return (
            f".FAULT {json.dumps({'name': name, 'status': status, 's': 5.4, 'left': left})}\n      wavalign: {line}\n"
        )

    died = "the {} at 10.0.0.1:37995 has died: start it again to go on from its last checkpoint"
    log = told("killed engine", 1, [], died.format("rollout engine 0"))
    log += told("killed server", 1, ["/dev/shm/psm_1"], died.format("rollout engine 0"))
    log += told("killed rank", 0, [], died.format("training worker 1")) + "F"
    log += told("ctrl-c", 130, [], "another line")
    rows = {row.split(" | ")[0].removeprefix("| "): row for row in verdicts.rows(log)}
    assert len(rows) == len(verdicts.FAULTS)
    assert (
        rows["killed engine"].endswith("| passes |")
        and "| 1 | 5 | the rollout engine 0 at HOST:PORT" in rows["killed engine"]
    )
    assert rows["killed server"].endswith("| **fails**, left: /dev/shm/psm_1 |")
    assert rows["killed rank"].endswith("| **fails** |") and rows["ctrl-c"].endswith("| **fails** |")
    assert rows["resume"].endswith("| not run |")
