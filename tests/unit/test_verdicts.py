"""The table of faults: a row for each, and only what pytest has passed passes."""

import json
import subprocess
import sys
from pathlib import Path

VERDICTS = Path(__file__).parents[1] / "faults" / "verdicts.py"


def test_each_fault_has_its_verdict(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "faults.md"
    page.write_text("| resume | 0 | 70 | of an earlier run | passes |\n| killed engine | 1 | 99 | earlier | passes |\n")

    def told(name: str, left: list[str], mark: str, line: str = "") -> str:
        died = "the rollout engine 0 at 10.0.0.1:37995 has died: start it again to go on from its last checkpoint"
        fact = json.dumps({"name": name, "status": 1, "s": 5.4, "left": left})
        return f"FAULT {fact}\n      wavalign: {line or died}\n{mark}"

    first, second = tmp_path / "first.log", tmp_path / "second.log"
    log = told("killed engine", [], ".") + told("killed server", ["/dev/shm/psm_1"], "F")
    log += told("killed reward", [], "F").replace('"status": 1', '"status": null')
    first.write_text(log + told("killed rank", [], "F") + told("killed loop", [], ""))
    second.write_text(told("killed rank", [], ".", "a line | of " + "many " * 99 + "words"))
    # A copy, whose page is not the repository's.
    copy = tmp_path / "tests" / "faults" / VERDICTS.name
    copy.parent.mkdir(parents=True)
    for name in (VERDICTS.name, "table.py", "harness.py"):
        (copy.parent / name).write_text((VERDICTS.parent / name).read_text())
    (copy.parents[1] / "support").symlink_to(VERDICTS.parents[1] / "support")
    subprocess.run([sys.executable, str(copy), str(first), str(second)], check=True)
    rows = {row.split(" | ")[0].removeprefix("| "): row for row in page.read_text().splitlines() if row[:2] == "| "}
    assert rows["killed engine"].endswith("| passes |")
    assert "| 1 | 5 | the rollout engine 0 at HOST:PORT" in rows["killed engine"]
    assert rows["killed server"].endswith("| **fails**, left: /dev/shm/psm_1 |")
    assert "| a line / of many" in rows["killed rank"] and rows["killed rank"].endswith("… | passes |")
    assert rows["killed reward"].startswith("| killed reward | never | 5 |")
    assert rows["killed reward"].endswith("| **fails** |")
    assert rows["killed loop"].endswith("| not run |") and rows["diverged"].endswith("| not run |")
    assert rows["resume"] == "| resume | 0 | 70 | of an earlier run | passes |"
