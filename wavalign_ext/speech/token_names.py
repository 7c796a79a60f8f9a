"""Tokens by name: single ones and ranges of speech tokens, looked up in a tokenizer's vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class LayoutError(ValueError):
    """A layout that is inconsistent, or does not fit a tokenizer, a prompt or a response."""


@dataclass(frozen=True)
class TokenRange:
    """``count`` consecutive tokens ``pattern.format(0)``, …; ``first_id`` where no names exist."""

    pattern: str | None = None
    count: int = 0
    first_id: int | None = None

    def resolve(self, vocabulary: Mapping[str, int], what: str) -> range:
        """The ids. Raises :class:`LayoutError`: a name is missing, or the ids are not consecutive."""
        if not is_count(self.count, 1):
            raise LayoutError(f"{what}: count={self.count!r}: give a whole number of at least 1")
        if self.first_id is not None:
            if self.pattern is not None or not is_count(self.first_id, 0):
                raise LayoutError(f"{what}: first_id={self.first_id!r}: give an id ≥ 0 and no pattern")
            return range(self.first_id, self.first_id + self.count)
        if not isinstance(self.pattern, str) or self.pattern.count("{}") != 1:
            raise LayoutError(f"{what}: pattern={self.pattern!r}: give a token name with one {{}}")
        start = id_of(self.pattern.format(0), vocabulary, what)
        id_of(self.pattern.format(self.count - 1), vocabulary, what)
        for code in range(self.count):
            name = self.pattern.format(code)
            if id_of(name, vocabulary, what) != start + code:
                problem = f"token {name!r} has id {vocabulary[name]}, not consecutive {start + code}"
                raise LayoutError(f"{what}: {problem}; use the model's own tokenizer")
        return range(start, start + self.count)


def resolve_ranges(
    speech: TokenRange, user_speech: TokenRange | None, vocabulary: Mapping[str, int], where: str
) -> tuple[range, range]:
    """The ids of the answer's and of the user's speech; without a range of its own the user's is the answer's."""
    ids = speech.resolve(vocabulary, f"{where}, speech")
    return ids, ids if user_speech is None else user_speech.resolve(vocabulary, f"{where}, user_speech")


def id_of(name: str, vocabulary: Mapping[str, int], what: str) -> int:
    """The id of one token. Raises :class:`LayoutError`: the vocabulary does not have it."""
    if name not in vocabulary:
        raise LayoutError(f"{what}: the tokenizer has no token {name!r}: use this layout's own tokenizer")
    return vocabulary[name]


def is_count(value: Any, least: int) -> bool:
    """Whether ``value`` is a whole number of at least ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_codes(where: str, codes: Sequence[int], count: int) -> None:
    """Raises :class:`LayoutError`: a code that is not among ``count`` ones."""
    wrong = next((int(code) for code in codes if not 0 <= code < count), None)
    if wrong is not None:
        raise LayoutError(f"{where}: code {wrong} is out of range: 0 to {count - 1}; use this layout's codec")


def check_size(where: str, top: int, vocab_size: int | None) -> None:
    """Raises :class:`LayoutError`: the model, where its vocabulary is known, does not reach the id ``top``."""
    if vocab_size is not None and top >= vocab_size:
        problem = f"token id {top} is beyond the model's vocabulary of {vocab_size}"
        raise LayoutError(f"{where}: {problem}: use its own tokenizer, or resize its embeddings")


def check_overlap(where: str, speech: range, user_speech: range, named: Mapping[str, int]) -> None:
    """Raises :class:`LayoutError`: the ranges overlap, or a named token lies in one."""
    if speech != user_speech and speech.start < user_speech.stop and user_speech.start < speech.stop:
        raise LayoutError(f"{where}: speech ids {speech} and user_speech ids {user_speech} overlap: separate them")
    for name, token_id in named.items():
        for what, ids in (("speech", speech), ("user_speech", user_speech)):
            if token_id in ids:
                problem = f"token {name!r} (id {token_id}) lies in the {what} range {ids}"
                raise LayoutError(f"{where}: {problem}: name another token, or correct the range")
