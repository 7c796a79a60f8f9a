"""Tokenizers published as a list of byte pieces with ranks (tiktoken's), as fast ones of transformers, same ids."""

import base64
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from wavalign_ext.checkpoints.plan import ConvertError, read_json


def special_tokens(source: Path) -> dict[str, int]:
    """``{name: id}`` of ``added_tokens_decoder`` in ``tokenizer_config.json``. Raises :class:`ConvertError`: none."""
    settings = read_json(source / "tokenizer_config.json")
    added = settings.get("added_tokens_decoder") or {}
    if not added:
        raise ConvertError(f"{str(source)!r}: tokenizer_config.json has no added_tokens_decoder: use the published one")
    return {token["content"]: int(token_id) for token_id, token in added.items()}


def write_fast(
    pieces: Path,
    target: Path,
    tokens: Mapping[str, int],
    pattern: str,
    settings: Mapping[str, Any],
    special: Callable[[str], bool],
) -> None:
    """``pieces`` (a line per piece: base64 and rank) as a byte-level BPE in the folder ``target``.

    Args:
        tokens: ``{name: id}`` of what is no piece; ids without a name get one, for a fast tokenizer wants no gaps.
        pattern: how text is cut before bytes are merged.
        settings: of ``tokenizer_config.json``.
        special: which tokens decoding may leave out.

    Raises:
        ConvertError: no such file, or lines of another form.
    """
    try:
        lines = [line.split() for line in pieces.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(piece, validate=True): int(rank) for piece, rank in lines}
    except (OSError, ValueError) as error:
        raise ConvertError(f"{str(pieces)!r} is no list of base64 pieces with ranks: {error}") from error
    names = {_printable(piece): rank for piece, rank in ranks.items()} | dict(tokens)
    taken = set(names.values())
    names |= {f"<|unused_{free}|>": free for free in range(max(taken)) if free not in taken}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    fast = {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": name, **flags, "special": special(name)}
            for name, token_id in sorted(tokens.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": names, "merges": _merges(ranks), "ignore_merges": True},
    }
    (target / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")
    given = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (target / "tokenizer_config.json").write_text(json.dumps(given, indent=2) + "\n")


def _merges(ranks: dict[bytes, int]) -> list[list[str]]:
    """Each way to make a piece of two pieces, by the rank of the result: what merging by rank comes to."""
    pairs = []
    for piece, rank in ranks.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in ranks and right in ranks:
                pairs.append((rank, ranks[left], ranks[right], [_printable(left), _printable(right)]))
    return [pair for *_, pair in sorted(pairs, key=lambda item: item[:3])]


@cache
def _byte_names() -> list[str]:
    """The character that stands for each byte in byte-level BPE: itself where printable, else one from 256 on."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _printable(piece: bytes) -> str:
    return "".join(map(_byte_names().__getitem__, piece))
