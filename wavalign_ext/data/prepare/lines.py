"""The file that ``wavalign prepare`` reads, JSONL or a JSON list: each entry with its sample or what is wrong."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wavalign_ext.data.prepare.dialogue import Sample, parse
from wavalign_ext.data.prepare.messages import SampleError
from wavalign_ext.data.prepare.shapes import shape_of
from wavalign_ext.schema import one_line

OTHERS = {  # first bytes of files that are no text
    b"\x1f\x8b": "gzip: unpack it first (gunzip)",
    b"BZh": "bzip2: unpack it first (bunzip2)",
    b"\xfd7zXZ": "xz: unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "Zstandard: unpack it first (unzstd)",
    b"PK\x03\x04": "a ZIP archive: unpack it first (unzip)",
    b"PAR1": "parquet: write it as JSONL, or train on it with data.custom_cls.name=RawAudioDataset (docs/data.md)",
    b"ARROW1": "an Arrow file: write it as JSONL",
    b"RIFF": "a recording: give JSONL that names recordings",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
}


@dataclass
class Line:
    """An entry: its number from 1 (line or item), its text, shape and sample, and what is wrong."""

    number: int
    text: str
    shape: str | None = None
    sample: Sample | None = None
    problems: list[SampleError] = field(default_factory=list)


def read_lines(path: Path, shape: str = "auto", speaks: bool = True) -> Iterator[Line]:
    """Every line that is not blank, or every item of a list; ``speaks`` as :func:`parse` has it.

    Raises:
        ValueError: the file is no text, or no JSONL.
    """
    with open(path, "rb") as file:
        head = file.read(4096)
        for magic, what in OTHERS.items():
            if head.startswith(magic):
                raise ValueError(f"{str(path)!r} is {what}")
        file.seek(0)
        text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if text[:1] == b"[" or text.split(b"\n")[0].strip() == b"{":
            items = _whole(path)
            if items is not None:
                yield from (_line(n, json.dumps(item), item, shape, speaks) for n, item in enumerate(items, 1))
                return
        for number, raw in enumerate(file, 1):
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip()
            if not text:
                continue
            if "\ufffd" in text and b"\xef\xbf\xbd" not in raw:
                why = SampleError("line", text, "is not UTF-8: save the file as UTF-8")
                yield Line(number, text, problems=[why])
                continue
            yield _line(number, text, None, shape, speaks)


def _whole(path: Path) -> list[Any] | None:
    """The items of a file that is one JSON list; None where it is JSONL after all. Raises ValueError: it is neither."""
    data = path.read_bytes()
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        try:
            json.loads(data.decode("utf-8-sig", "replace").lstrip().partition("\n")[0])
        except (ValueError, RecursionError):
            why = one_line(str(error))
            raise ValueError(
                f"{str(path)!r} is neither JSONL nor a JSON list ({why}): write one object per line"
            ) from error
        return None
    if isinstance(found, list):
        return found
    keys = ", ".join(map(repr, found)) if isinstance(found, dict) else type(found).__name__
    raise ValueError(f"{str(path)!r} is one JSON object ({keys:.200}): write a list, or one object per line")


def _line(number: int, text: str, record: Any, shape: str, speaks: bool) -> Line:
    line = Line(number, text)
    try:
        record = _json(text) if record is None else record
        line.shape = shape if shape != "auto" else shape_of(record) if isinstance(record, dict) else None
        line.sample = parse(record, shape, speaks)
    except SampleError as error:
        line.problems.append(error)
    except Exception as error:  # whatever it is, it is this line's, and the others go on
        why = one_line(f"{type(error).__name__}: {error}")
        line.problems.append(SampleError("line", text, f"cannot be read ({why}): compare it with docs/data.md"))
    return line


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SampleError("line", text, f"is not JSON ({error}): write one object per line") from error
