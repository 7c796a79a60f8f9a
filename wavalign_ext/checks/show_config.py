"""``wavalign config [RECIPE] [OVERRIDE ...]``: a recipe's keys, with their values, what each takes and what it is for.

The explanations are the docstrings of the fields in :mod:`wavalign_ext.config` and :mod:`wavalign_ext.verl_keys`.
"""

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from pydantic.fields import FieldInfo

from wavalign_ext.checks.recipe import DEFAULT, compose_recipe
from wavalign_ext.config import KEY, WavAlignConfig
from wavalign_ext.schema import Section, allowed, one_line, plain, section_of
from wavalign_ext.verl_keys import VerlKeys

ABOUT = """The keys of a recipe with their values, what each takes, and what it is for: first those of the method,
all under wavalign, then those of verl's that the method reads. Every other key of verl's is verl's own;
one that would do nothing under the trainer wavalign is refused before a run starts."""
EXAMPLE = """examples:
  wavalign config                                   the recipe wavalign
  wavalign config wavalign_routed                   another one
  wavalign config sft_anchor wavalign.kl.text=0     with overrides, as a run would have them
  wavalign config --markdown > config.md            as a page; values as the recipe writes them"""
WIDTH, INDENT = 100, " " * 4
CELL = 160  # characters of a value in a table
OURS = "Keys of the method"
THEIRS = "Keys of verl's that the method reads"
PAGE = """# Configuration

<!-- made by `make pages`: change the docstrings in wavalign_ext/config.py and wavalign_ext/verl_keys.py instead -->

`wavalign config [RECIPE] [OVERRIDE ...]` prints this for any recipe. Set a key behind the command of a run:
`python -m verl.trainer.main_ppo +recipe=wavalign wavalign.kl.text=0.01`. A wrong name or value ends the run in one line
before it starts.

A value here is the one of `{recipe}`, as the recipe writes it: `${{wavalign.pocket:PATH}}` is a path in the folder of
the built pocket assets.
"""


@dataclass(frozen=True)
class Key:
    """One key of a composed recipe. ``value`` and ``default`` are as YAML has them; no default: one must be given."""

    name: str
    value: str
    default: str
    takes: str
    meaning: str


@dataclass(frozen=True)
class Node:
    """A section with the keys that lie right in it."""

    name: str
    meaning: str
    keys: list[Key]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the keys; 2 when the recipe does not compose."""
    parser = argparse.ArgumentParser(
        prog="wavalign config", description=ABOUT, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default=DEFAULT, metavar="RECIPE", help=f"its name (default {DEFAULT})")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="what verl.trainer.main_ppo will be given")
    parser.add_argument("--markdown", action="store_true", help="as a page instead of text for a terminal")
    args = parser.parse_args(argv)
    # The recipe may be left out before an override.
    words = [args.recipe if "=" in args.recipe else f"+recipe={args.recipe}", *args.overrides]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what composing says is no part of the page
            words, config, _ = compose_recipe(words)
    except Exception as error:  # Hydra's and OmegaConf's have many bases
        print(f"wavalign config: {one_line(str(error))}", file=sys.stderr)
        return 2
    lines = markdown(config, words) if args.markdown else text(config, words)
    print("\n".join(lines))
    return 0


def text(config: Any, words: Sequence[str]) -> Iterator[str]:
    """Lines for a terminal."""
    yield " ".join(words)
    for title, nodes in _parts(config, resolve=True):
        yield from ("", f"=== {title} ===")
        for node in nodes:
            yield from ("", f"{node.name}: {_short(node.meaning)}")
            for key in node.keys:
                yield from ("", *_wrapped(f"{key.name} = {key.value}{_default(key)}", INDENT))
                yield from _wrapped(f"Takes {key.takes}.", INDENT * 2)
                yield from _wrapped(_short(key.meaning), INDENT * 2)


def markdown(config: Any, words: Sequence[str]) -> Iterator[str]:
    """Lines of the page: a table for each section."""
    yield PAGE.format(recipe=" ".join(words))
    for title, nodes in _parts(config, resolve=False):
        yield from (f"## {title}", "")
        for node in nodes:
            yield from (f"### `{node.name}`", "", _short(node.meaning), "")
            yield from ("| Key | Value | Takes | Meaning |", "|---|---|---|---|")
            for key in node.keys:
                value = f"`{_cut(key.value)}`{_default(key)}"
                yield f"| {' | '.join((f'`{key.name}`', value, key.takes, _short(key.meaning)))} |"
            yield ""


def _parts(config: Any, resolve: bool) -> Iterator[tuple[str, list[Node]]]:
    yield OURS, list(_nodes(WavAlignConfig, config, KEY, WavAlignConfig.__doc__ or "", resolve))
    yield THEIRS, list(_nodes(VerlKeys, config, "", "", resolve))


def _nodes(cls: type[Section], config: Any, name: str, meaning: str, resolve: bool) -> Iterator[Node]:
    """The section ``cls`` at ``name``, then those in it; one without keys of its own is left out."""
    keys, inner = [], []
    for field_name, field in cls.model_fields.items():
        key, about = f"{name}.{field_name}".strip("."), field.description or ""
        section = section_of(field.annotation)
        if section is None:
            value, default = _value(config, key, field, resolve), _yaml(field.default)
            told = "" if field.is_required() or field.default_factory or default == value else default
            keys.append(Key(key, value, told, allowed(field), about))
        elif OmegaConf.select(config, key) is not None:
            inner.append((section, key, about))
    if keys:
        yield Node(name, meaning, keys)
    for section, key, about in inner:
        yield from _nodes(section, config, key, about, resolve)


def _value(config: Any, key: str, field: FieldInfo, resolve: bool) -> str:
    """What the recipe has at ``key``, or else the default; ``resolve`` follows its interpolations."""
    parent, _, name = key.rpartition(".")
    node: Any = OmegaConf.to_container(OmegaConf.select(config, parent), resolve=False)
    if name not in node:
        return _yaml(field.get_default(call_default_factory=True))
    if not resolve or node[name] == "???":
        return _yaml(node[name])
    value = OmegaConf.select(config, key)
    return _yaml(OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)


def _yaml(value: Any) -> str:
    """On one line, much as in YAML; whole floats without their zero, so that a recipe's 5 is the code's 5.0."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_yaml(inner)}' for name, inner in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else plain(value)


def _default(key: Key) -> str:
    return f" (default {key.default})" if key.default else ""


def _cut(value: str) -> str:
    """For a table, up to a pipe: renderers differ on how one is written within code."""
    cut = value.partition("|")[0][:CELL]
    return value if cut == value else f"{cut}…"


def _wrapped(paragraph: str, indent: str) -> list[str]:
    further = INDENT * 2
    return textwrap.wrap(paragraph, WIDTH, initial_indent=indent, subsequent_indent=further, break_long_words=False)


def _short(meaning: str) -> str:
    """Without the marks of a docstring."""
    return one_line(meaning).replace("``", "`")
