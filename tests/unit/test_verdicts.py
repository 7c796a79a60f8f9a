"""The table of faults: a row for each, and only what pytest has passed passes."""

import json
import subprocess
import sys
from pathlib import Path


def test_each_fault_has_its_verdict(tmp_path: Path) -> None:
    def told(name: str, left: list[str], mark: str, line: str = "") -> str:
        died = "the rollout engine 0 at 10.0.0.1:37995 has died: start it again to go on from its last checkpoint"
        fact = json.dumps({"name": name, "status": 1, "s": 5.4, "left": left})
        return f"FAULT {fact}\n      wavalign: {line or died}\n{mark}"

    first, second = tmp_path / "first.log", tmp_path / "second.log"
    log = told("killed engine", [], ".") + told("killed server", ["/dev/shm/psm_1"], "F")
    first.write_text(log + told("killed rank", [], "F") + told("killed loop", [], ""))
    second.write_text(told("killed rank", [], ".", "a line | of " + "many " * 99 + "words"))
    command = [sys.executable, str(Path(__file__).parents[1] / "faults" / "verdicts.py"), str(first), str(second)]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = {row.split(" | ")[0].removeprefix("| "): row for row in page.splitlines() if row.startswith("| ")}
    assert rows["killed engine"].endswith("| passes |")
    assert "| 1 | 5 | the rollout engine 0 at HOST:PORT" in rows["killed engine"]
    assert rows["killed server"].endswith("| **fails**, left: /dev/shm/psm_1 |")
    assert "| a line / of many" in rows["killed rank"] and rows["killed rank"].endswith("… | passes |")
    assert rows["killed loop"].endswith("| not run |") and rows["resume"].endswith("| not run |")
