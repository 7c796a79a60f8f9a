"""``python -m wavalign_ext.pocket``: build the embedded default and print its numbers."""

import argparse
from pathlib import Path

from wavalign_ext.pocket.build import build, summary


def main() -> None:
    parser = argparse.ArgumentParser(prog="wavalign pocket", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder to build in; default: a folder of the cache, by content")
    parser.add_argument("--force", action="store_true", help="build again although the folder is there")
    arguments = parser.parse_args()
    print(summary(build(arguments.out, arguments.force)))


if __name__ == "__main__":
    main()
