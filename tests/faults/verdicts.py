"""What ``make test-faults`` printed, as the table of docs/faults.md.

make test-faults > faults.log; python tests/faults/verdicts.py faults.log > docs/faults.md

Of several logs the later counts.
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from table import FAULTS  # noqa: E402

HEAD = """# Faults

What was done to real jobs of the pocket model, four steps with a checkpoint after each, and how they ended:
`make test-faults`, whose output `python tests/faults/verdicts.py` made into this page. *Ends* is the exit status, *s*
the seconds from the fault to the end of the process, or from its start where the fault is there before it. A fault
passes when status, last line, checkpoints and what can be resumed are as they must be, and no process, shared memory,
socket, lock or temp folder is left.

| fault | ends | s | last line | verdict |
|---|---|---|---|---|"""
SEEN = 150  # characters of a last line


def rows(log: str) -> list[str]:
    """A row of the table for each fault that the log has, in the order of ``table.FAULTS``."""
    found = {}
    for told, line, passed in re.findall(r"FAULT (\{.*\})\n +(.*)\n([.F])", log):  # pytest's own mark is the verdict
        found[json.loads(told)["name"]] = (json.loads(told), line.strip(), passed == ".")
    made = []
    for fault in FAULTS:
        if fault.name not in found:
            made.append(f"| {fault.name} | | | | not run |")
            continue
        told, line, passed = found[fault.name]
        verdict = "passes" if passed else f"**fails**{', left: ' + ', '.join(told['left']) if told['left'] else ''}"
        line = _hidden(line.removeprefix("wavalign: "))
        shown = line if len(line) <= SEEN else f"{line[:SEEN].rstrip()} …"
        made.append(f"| {fault.name} | {told['status']} | {told['s']:.0f} | {shown.replace('|', '/')} | {verdict} |")
    return made


def _hidden(line: str) -> str:
    """Without the paths and addresses of this machine."""
    line = re.sub(r"\S*/(?=run\b)", "…/", line)
    return re.sub(r"\b\d+\.\d+\.\d+\.\d+:\d+", "HOST:PORT", line)


if __name__ == "__main__":
    print("\n".join([HEAD, *rows("\n".join(Path(log).read_text() for log in sys.argv[1:]))]))
