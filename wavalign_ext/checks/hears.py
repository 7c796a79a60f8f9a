"""``wavalign hears MODEL ROWS``: does a model that hears through an encoder answer what it hears?

Each row is answered twice, greedily: with its own recording, and with another row's in its place. A model that listens
says other words, and is right only about its own.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavalign_ext.speech.layout import ResolvedLayout


@dataclass(frozen=True)
class Asked:
    """A row: its prompt's ids, the vectors (frames, size) of its recordings, and its target's text.

    ``keywords``: what a right answer has, where it need not be the target word by word.
    """

    prompt: list[int]
    heard: list[Tensor]
    answer: str
    keywords: tuple[str, ...] = ()

    def right(self, text: str) -> bool:
        """Whether ``text`` answers the row."""
        if self.keywords:
            return all(f" {word} " in f" {text} " for word in self.keywords)
        return text == self.answer


@dataclass(frozen=True)
class Hearing:
    """Shares of ``rows``: ``changed`` answers, ``right`` ones, and ``right_swapped`` ones with another's recording."""

    rows: int
    changed: float
    right: float
    right_swapped: float

    def __str__(self) -> str:
        return (
            f"{self.rows} rows: with another row's recording {self.changed:.1%} of the answers have other words; "
            f"right {self.right:.1%} with their own, {self.right_swapped:.1%} with the other"
        )


def measure(model: Any, asked: Sequence[Asked], layout: ResolvedLayout, tokenizer: Any, most: int = 90) -> Hearing:
    """Answer ``asked`` with their own last recordings and with each other's, by greedy search of ``most`` tokens.

    Raises:
        ValueError: fewer than two different answers, so that nothing can be swapped.
    """
    if len({row.keywords or row.answer for row in asked}) < 2:
        raise ValueError("rows with at least two different answers are needed: give more")
    own = words(answers(model, asked, layout, most=most), layout, tokenizer)
    other = words(answers(model, swapped(asked, layout), layout, most=most), layout, tokenizer)
    share = lambda hits: sum(hits) / len(asked)  # noqa: E731
    return Hearing(
        rows=len(asked),
        changed=share(a != b for a, b in zip(own, other, strict=True)),
        right=share(row.right(a) for a, row in zip(own, asked, strict=True)),
        right_swapped=share(row.right(b) for b, row in zip(other, asked, strict=True)),
    )


def swapped(asked: Sequence[Asked], layout: ResolvedLayout) -> list[Asked]:
    """Each row with the last recording of the next row whose answer is another."""
    found = []
    for number, row in enumerate(asked):
        others = [*asked[number + 1 :], *asked[:number]]
        other = next(o for o in others if (o.keywords or o.answer) != (row.keywords or row.answer))
        found.append(with_recording(row, other.heard[-1], layout))
    return found


def with_recording(row: Asked, heard: Tensor, layout: ResolvedLayout) -> Asked:
    """``row`` with ``heard`` (frames, size) for its last recording; the prompt has as many placeholders."""
    token, ids = layout.user_speech_start, row.prompt
    end = len(ids) - ids[::-1].index(token)
    prompt = [*ids[: end - len(row.heard[-1])], *[token] * len(heard), *ids[end:]]
    return replace(row, prompt=prompt, heard=[*row.heard[:-1], heard])


@torch.no_grad()
def answers(
    model: Any, asked: Sequence[Asked], layout: ResolvedLayout, most: int = 90, batch: int = 64, **sampling: Any
) -> list[list[int]]:
    """One answer per row, in order, by ``generate`` of transformers; greedy without settings for sampling."""
    said: list[list[int]] = []
    pad = layout.eos_ids[0] if layout.pad_id is None else layout.pad_id
    for start in range(0, len(asked), batch):
        chosen = asked[start : start + batch]
        width = max(len(row.prompt) for row in chosen)
        ids = torch.tensor([[pad] * (width - len(row.prompt)) + row.prompt for row in chosen])
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in chosen])
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            audio_features=torch.cat([one for row in chosen for one in row.heard]),
            max_new_tokens=most,
            pad_token_id=pad,
            eos_token_id=list(layout.eos_ids),
            **(sampling or {"do_sample": False}),
        )
        said += [_ended(row, layout) for row in out[:, width:].tolist()]
    return said


def _ended(ids: list[int], layout: ResolvedLayout) -> list[int]:
    """Up to the first end token, which stays."""
    ends = [place for place, i in enumerate(ids) if i in layout.eos_ids]
    return ids[: ends[0] + 1] if ends else ids


def words(said: Sequence[Sequence[int]], layout: ResolvedLayout, tokenizer: Any) -> list[str]:
    """What each answer says in text."""
    return [tokenizer.decode(layout.split(list(ids)).text_ids).strip() for ids in said]


def read_rows(path: Path, root: Path, tokenizer: Any, most: int | None = None) -> list[Asked]:
    """The rows of a parquet file that ``wavalign prepare`` wrote for a model that hears, at most ``most``.

    Raises:
        ValueError: no such rows are in it.
    """
    import pandas

    from wavalign_ext.rewards.answer import keywords_of
    from wavalign_ext.speech.chat import prompt_ids
    from wavalign_ext.speech.heard import HEARD_FEATURES, load_features

    table = pandas.read_parquet(path)
    if HEARD_FEATURES not in table:
        raise ValueError(f"{str(path)!r} has no {HEARD_FEATURES}: run wavalign prepare with the model's layout")
    return [
        Asked(
            prompt_ids(tokenizer, list(row["prompt"])),
            load_features(list(row[HEARD_FEATURES]), str(root)),
            row["target_text"].strip(),
            keywords_of(row["extra_info"].get("keywords")),
        )
        for row in table.head(most or len(table)).to_dict("records")
        if row[HEARD_FEATURES] is not None and len(row[HEARD_FEATURES])
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="wavalign hears", description=__doc__)
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder: converted, exported, or the embedded one")
    parser.add_argument("rows", metavar="ROWS.parquet", type=Path, help="held-out rows of wavalign prepare")
    parser.add_argument("--layout", metavar="NAME", help="or its YAML file; default: what wavalign export wrote")
    parser.add_argument("--audio-root", metavar="DIR", type=Path, help="of the features; default: ROWS' folder")
    parser.add_argument("--rows", dest="most", metavar="N", type=int, help="the first N rows; default: all")
    parser.add_argument("--tokens", metavar="N", type=int, default=90, help="of an answer (default: %(default)s)")
    given = parser.parse_args(argv)
    try:
        print(f"wavalign hears: {_measure(given)}")
    except (ValueError, OSError, ImportError) as error:
        print(f"wavalign hears: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _measure(given: argparse.Namespace) -> Hearing:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wavalign_ext import models
    from wavalign_ext.checkpoints.export import LAYOUT_FILE
    from wavalign_ext.speech.layout import load_layout

    models.register()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    layout = load_layout(given.layout or given.model / LAYOUT_FILE).resolve(tokenizer)
    if layout.layout.encoder is None or layout.layout.encoder.placeholder is None:
        raise ValueError(f"layout {layout.layout.name!r} hears tokens: this is for user_speech: continuous")
    asked = read_rows(given.rows, given.audio_root or given.rows.parent, tokenizer, given.most)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype="auto").eval()
    return measure(model, asked, layout, tokenizer, given.tokens)


if __name__ == "__main__":
    raise SystemExit(main())
