"""Which kinds of token may come next in a response, by its layout's schedule.

:class:`Turns` reads a response token by token. It accepts exactly the responses in which
:meth:`wavalign_ext.speech.layout.ResolvedLayout.split` finds no error: complete turns in the schedule's order, then a
last turn in which one stream has ended and the other writes what is left of it.
"""

from wavalign_ext.speech.layout import BOUNDARY, SPEECH, ResolvedLayout

# What a token is, to the schedule. NEVER is the user's speech, where that has tokens of its own.
TEXT, CODE, BEGIN, END, EOS, NEVER = range(6)
KINDS = 6


def kinds_of_ids(layout: ResolvedLayout, size: int) -> list[int]:
    """The kind of each id below ``size``."""
    kinds = [TEXT if kind not in (SPEECH, BOUNDARY) else CODE for kind in layout.modality(range(size)).tolist()]
    for token_id in range(layout.user_speech_start, layout.user_speech_end):
        if not layout.speech_start <= token_id < layout.speech_end:
            kinds[token_id] = NEVER
    for token_id, kind in ((layout.begin_id, BEGIN), (layout.end_id, END), *((eos, EOS) for eos in layout.eos_ids)):
        if token_id is not None:
            kinds[token_id] = kind
    return kinds


class Turns:
    """Where a response stands in its schedule: the turn, and how much of it has been said."""

    def __init__(self, layout: ResolvedLayout) -> None:
        self.schedule, self.bounded = layout.schedule, layout.begin_id is not None
        self.turn, self.words, self.codes = 0, 0, 0
        self.inside = self.closed = False  # between the boundaries of a chunk; behind them

    def allowed(self) -> frozenset[int]:
        """Kinds that may come next."""
        words, codes = self.schedule[min(self.turn, len(self.schedule) - 1)]
        if self.closed or (not self.bounded and self.codes):
            whole = (self.words, self.codes) == (words, codes)  # else a stream has run out, and this was the last turn
            behind = {EOS, TEXT} if whole else {EOS}
            return frozenset(behind if self.closed else behind | self._more(words, codes))
        if self.inside:
            return frozenset(self._more(words, codes) | ({END} if self.codes else set()))
        if self.words == 0:
            return frozenset({TEXT, EOS} if self.turn else {TEXT})
        return frozenset({TEXT, BEGIN if self.bounded else CODE})

    def step(self, kind: int) -> None:
        """Take one token; what is not allowed is taken as it comes."""
        if kind == BEGIN:
            self.inside = True
        elif kind == END:
            self.inside, self.closed = False, True
        elif kind == CODE:
            self.codes += 1
        elif kind == TEXT:
            if self.closed or (not self.bounded and self.codes):
                self.turn, self.words, self.codes, self.closed = self.turn + 1, 0, 0, False
            self.words += 1

    def _more(self, words: int, codes: int) -> set[int]:
        """Another code, unless the text of this turn is too long for more than the scheduled codes."""
        return {CODE} if self.words <= words or self.codes < codes else set()
