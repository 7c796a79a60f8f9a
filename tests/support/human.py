"""Recordings of people with their transcripts, from the sources of pocketsphinx (BSD): LibriVox, and names of cards.

34 MB: ``pip download --no-deps --no-binary pocketsphinx pocketsphinx``.
"""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PARTS = ("librivox", "cards")


def recordings(folder: Path) -> dict[Path, str]:
    """Ten recordings of 1 to 7 seconds and what is said in them. Skips the test where there is no network."""
    # Only this package from sources: of its build tools the wheels will do.
    command = ["-m", "pip", "download", "--no-deps", "--no-binary", "pocketsphinx", "pocketsphinx", "-d", str(folder)]
    found = subprocess.run([sys.executable, *command, "-q"], capture_output=True, text=True, timeout=300)
    if found.returncode:
        pytest.skip(f"the recordings cannot be downloaded: {found.stderr.strip()[-200:]}")
    (package,) = folder.glob("pocketsphinx-*.tar.gz")
    with tarfile.open(package) as archive:
        wanted = [name for name in archive.getnames() if any(f"/test/data/{part}/" in name for part in PARTS)]
        archive.extractall(folder, [archive.getmember(name) for name in wanted], filter="data")
    said = {}
    for part in PARTS:
        (place,) = folder.glob(f"*/test/data/{part}")
        (script,) = place.glob("*transcription")
        for words, name in re.findall(r"<s>(.*?)</s>\s*\((.*?)\)", script.read_text()):
            said[place / f"{name}.wav"] = " ".join(words.split())
    return said
