"""What ``make test-faults`` printed, into the table of docs/faults.md.

make test-faults > faults.log; python tests/faults/verdicts.py faults.log

Of several logs the later counts. The row of a fault that no log has stays as it is.
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from table import FAULTS, KILLED_DRIVER  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
HEAD = """# Faults

What was done to real jobs of the pocket model, four steps with a checkpoint after each, and how they ended:
`make test-faults`, whose output `python tests/faults/verdicts.py` made into this page. *Ends* is the exit status, *s*
the seconds from the fault to the end of the process, or from its start where the fault is there before it. A fault
passes when status, last line, checkpoints and what can be resumed are as they must be, and no process, shared memory,
socket, lock or temp folder is left.

| fault | ends | s | last line | verdict |
|---|---|---|---|---|"""
SEEN = 150  # characters of a last line


def rows(log: str, page: str) -> list[str]:
    """A row of the table for each fault, by the log or from the page, in the order of ``table.FAULTS``."""
    before = {row.split(" | ")[0]: row for row in page.splitlines() if row.startswith("| ")}
    found = {}
    for told, line, passed in re.findall(r"FAULT (\{.*\})\n +(.*)\n([.F])", log):  # pytest's own mark is the verdict
        found[json.loads(told)["name"]] = (json.loads(told), line.strip(), passed == ".")
    made = []
    for name in [*(fault.name for fault in FAULTS), KILLED_DRIVER]:
        if name not in found:
            made.append(before.get(f"| {name}", f"| {name} | | | | not run |"))
            continue
        told, line, passed = found[name]
        verdict = "passes" if passed else f"**fails**{', left: ' + ', '.join(told['left']) if told['left'] else ''}"
        ends = "never" if told["status"] is None else told["status"]
        line = _hidden(line.removeprefix("wavalign: "))
        shown = line if len(line) <= SEEN else f"{line[:SEEN].rstrip()} …"
        made.append(f"| {name} | {ends} | {told['s']:.0f} | {shown.replace('|', '/')} | {verdict} |")
    return made


def _hidden(line: str) -> str:
    """Without the paths and addresses of this machine."""
    line = re.sub(r"\S*/(?=run\b)", "…/", line)
    return re.sub(r"\b\d+\.\d+\.\d+\.\d+:\d+", "HOST:PORT", line)


if __name__ == "__main__":
    log = "\n".join(Path(name).read_text() for name in sys.argv[1:])
    made = rows(log, PAGE.read_text() if PAGE.is_file() else "")
    PAGE.write_text("\n".join([HEAD, *made]) + "\n")
