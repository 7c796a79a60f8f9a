"""``python -m wavalign_ext.pocket``: build the embedded default and say where it is."""

import argparse
from pathlib import Path

from wavalign_ext.pocket.build import build, summary


def main() -> None:
    parser = argparse.ArgumentParser(prog="wavalign pocket", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder to build in; default: a folder of the cache, by content")
    parser.add_argument("--force", action="store_true", help="build again although the folder is there")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure how well the voice is understood and what the model answers, a minute more",
    )
    arguments = parser.parse_args()
    folder = build(arguments.out, arguments.force)
    print(summary(folder))
    if arguments.measure:
        from wavalign_ext.pocket.measure import lines, measure

        print("\n".join(lines(measure(folder))))


if __name__ == "__main__":
    main()
