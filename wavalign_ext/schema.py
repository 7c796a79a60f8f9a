"""Typed configuration: pydantic models whose errors are one line that names the key, the value, what is allowed.

Importing this module needs neither torch nor verl.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

SHOWN = 80  # characters of a value in a message


class ConfigError(ValueError):
    """A value that WavAlign cannot run with. The message names the key, the value, what is allowed and the remedy."""


class Section(BaseModel):
    """A mapping with known keys. Types are strict: a string or a bool is no number, null only where a field says so."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


S = TypeVar("S", bound=Section)


def build(cls: type[S], node: Any, prefix: str = "") -> S:
    """``node`` as a ``cls``.

    Args:
        prefix: where ``node`` lies, as the messages name it: ``wavalign``, or nothing for the root.

    Raises:
        ConfigError: one line for the first problem, and the keys of the others.
    """
    try:
        return cls.model_validate(dict(node) if isinstance(node, Mapping) else node)
    except ValidationError as error:
        problems = dict(_problem(cls, details, prefix) for details in reversed(error.errors()))
    *others, first = problems
    raise ConfigError(problems[first] + listed(reversed(others)))


def refusal(key: str, value: Any, why: str) -> str:
    """The line for a value that is not allowed."""
    return f"{key}={shown(value)} is not allowed: {why}"


def listed(keys: Iterable[str]) -> str:
    """`` (and 2 more: KEY, KEY)``, or nothing without keys."""
    keys = list(keys)
    return f" (and {len(keys)} more: {', '.join(keys)})" if keys else ""


def shown(value: Any) -> str:
    """``repr`` of a value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def one_line(text: str) -> str:
    """``text`` with every run of white space, line ends among them, as one space."""
    return " ".join(text.split())


def plain(value: Any) -> str:
    """A default as YAML has it."""
    words = {None: "null", True: "true", False: "false"}
    return (
        words[value]
        if value is None or isinstance(value, bool)
        else str(list(value) if isinstance(value, tuple) else value)
    )


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """The sentence that proposes the known key whose last name is nearest, beside ``key`` if it can; or nothing."""
    parent, _, last = key.rpartition(".")
    keys = sorted(known, key=lambda path: path.rpartition(".")[0] != parent)
    close = difflib.get_close_matches(last, [path.rpartition(".")[2] for path in keys], n=1, cutoff=0.7)
    return f" Did you mean {next(path for path in keys if path.rpartition('.')[2] == close[0])}?" if close else ""


def allowed(field: FieldInfo) -> str:
    """What a field takes, in words: ``a number in [0, 1]``, ``one of text, speech``, ``an integer ≥ 0, or null``."""
    options = _options(field.annotation)
    words = " or ".join(_words(option, field) for option in options if option is not NoneType)
    return f"{words}, or null" if NoneType in options else words


def sections(cls: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key below ``cls``, dotted, with its field; a section comes before its own keys."""
    for name, field in cls.model_fields.items():
        yield prefix + name, field
        if (inner := section_of(field.annotation)) is not None:
            yield from sections(inner, f"{prefix}{name}.")


def _words(kind: Any, field: FieldInfo) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if (section := section_of(kind)) is not None:
        return f"a mapping with the keys {', '.join(section.model_fields)}"
    if kind in (int, float):
        return ("an integer" if kind is int else "a number") + _bounds(field)
    return _NAMES[get_origin(kind) or kind]


def _bounds(field: FieldInfo) -> str:
    found = {name: getattr(m, name) for m in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)}
    low, high = found.get("ge", found.get("gt")), found.get("le", found.get("lt"))
    if low is None or high is None:
        return "".join(f" {sign} {found[name]}" for name, sign in _SIGNS.items() if name in found)
    return f" in {'[' if 'ge' in found else '('}{low}, {high}{']' if 'le' in found else ')'}"


_NAMES = {
    bool: "true or false",
    str: "text",
    list: "a list of texts",
    dict: "a mapping",
    tuple: "a list of two numbers",
    Any: "text, or a mapping",
}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, None among them as ``NoneType``; or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, which may be optional."""
    held = [option for option in _options(annotation) if isinstance(option, type) and issubclass(option, Section)]
    return held[0] if held else None


def _problem(cls: type[Section], details: ErrorDetails, prefix: str) -> tuple[str, str]:
    """(key, line) of one of pydantic's errors."""
    loc = details["loc"]
    key = one_line("".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in (prefix, *loc))).strip(".")
    value, kind = details["input"], details["type"]
    if kind == "value_error":
        reason = details["ctx"]["error"] if "ctx" in details else details["msg"]
        if isinstance(reason, ConfigError):  # of a check that compares several keys, and names them itself
            return key, str(reason)
        return key, refusal(key, value, f"{reason}.")
    parent, field = _field(cls, loc)
    if kind == "extra_forbidden":
        hint = did_you_mean(key, [f"{prefix}.{path}".strip(".") for path, _ in sections(cls)])
        return key, f"{key}={shown(value)} is not a key here: one of {', '.join(parent.model_fields)}.{hint}"
    if kind == "missing":
        assert field is not None
        return key, f"{key} is missing: give {allowed(field)}."
    if field is None:  # the root itself, or a key that is no text
        return key, refusal(key, value, f"a mapping with the keys {', '.join(parent.model_fields)}.")
    words = allowed(field)
    return key, refusal(key, value, f"{words}.{_default(field)}")


def _field(cls: type[Section], loc: tuple[int | str, ...]) -> tuple[type[Section], FieldInfo | None]:
    """The innermost section on the way to ``loc``, and the last field that lies on it."""
    field = None
    for part in loc:
        if not isinstance(part, str) or part not in cls.model_fields:
            break
        field = cls.model_fields[part]
        inner = section_of(field.annotation)
        if inner is None:
            break
        cls = inner
    return cls, field


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default_factory is not None or isinstance(field.default, Section):
        return ""
    return f" Left out, it is {plain(field.default)}."
