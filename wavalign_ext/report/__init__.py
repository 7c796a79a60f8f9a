"""``wavalign report RUN [RUN ...]``: one HTML page of runs: their curves, and answers to read and play.

The page is self-contained: it asks the network for nothing, and audio is embedded as MP3 within a size budget.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ABOUT = """One HTML page of one or several runs: their curves side by side, and answers to read and play. The page needs
no network and no server: open it in a browser, or send it to someone. Audio is inside as MP3."""
DEFAULT_MB = 12.0


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; the exit status. A folder that is no run is an error on stderr and status 2."""
    parser = argparse.ArgumentParser(prog="wavalign report", description=ABOUT)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, for example runs/pocket")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: %(default)s)"
    )
    parser.add_argument(
        "--max-mb",
        type=_megabytes,
        default=DEFAULT_MB,
        metavar="MB",
        help="size of the page; recordings beyond it are left out, and counted (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    from wavalign_ext.report.page import render
    from wavalign_ext.report.reading import ReportError, read_runs

    try:
        runs = read_runs(args.runs)
        page = render(runs, int(args.max_mb * 1e6))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(page)
    except ReportError as error:
        print(f"wavalign: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"wavalign: --out {str(args.out)!r} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    names = ", ".join(run.name for run in runs)
    print(f"wavalign: {args.out}: {len(page) / 1e6:.1f} MB, {names}")
    return 0


def _megabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number of megabytes from 1 to 1000")
    return value
