"""The frame in which the embedded default's variants are built: once, by one process, whole or not at all."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from wavalign_ext.pocket import pocket_dir


def variant_dir(name: str, sources: Iterable[Path], layout: str) -> Path:
    """The variant's folder, beside the pocket model's, named by that and by what makes this one."""
    digest = hashlib.sha256(pocket_dir().name.encode())
    for source in sources:
        digest.update(source.read_bytes())
    digest.update((resources.files("wavalign_recipes") / "layout" / f"{layout}.yaml").read_bytes())
    return pocket_dir().with_name(f"{name}-{digest.hexdigest()[:12]}")


def build_variant(out: Path, what: str, make: Callable[[Path, Path], dict[str, Any]]) -> Path:
    """``out``, built now unless it is there; a second process waits for the first.

    Args:
        out: the finished folder.
        what: what is built and how long it takes, for the line that says so.
        make: given the pocket model's assets and an empty folder, fills the folder and answers with its numbers.
    """
    from filelock import FileLock

    from wavalign_ext.pocket.build import build as build_pocket

    assets = build_pocket()
    with FileLock(out.with_name(out.name + ".lock")):
        if (out / "report.json").is_file():
            return out
        print(f"wavalign: building {what} in {out}", flush=True)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see wavalign_ext.pocket.build
        work = out.with_name(out.name + ".building")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        began = time.monotonic()
        report = make(assets, work)
        report["seconds"] = round(time.monotonic() - began, 1)
        (work / "report.json").write_text(json.dumps(report, indent=1))
        os.replace(work, out)
    return out
