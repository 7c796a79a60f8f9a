"""What the pocket model is asked, the forms that an answer has, and what each form is worth.

Preference has something to teach here that demonstrations do not: they answer in all forms, and the reward likes one.
Demonstrations have something that the reward does not see: all are spoken in the lively manner.
"""

from dataclasses import dataclass

DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
OPPOSITES = (
    "hot cold|big small|fast slow|up down|left right|good bad|old young|rich poor|happy sad|wet dry|full empty|"
    "hard soft|long short|open closed|light dark|loud quiet|day night|early late"
)
CAPITALS = (
    "france paris|spain madrid|italy rome|germany berlin|japan tokyo|china beijing|russia moscow|egypt cairo|"
    "greece athens|norway oslo|poland warsaw|cuba havana|peru lima|kenya nairobi|austria vienna|portugal lisbon|"
    "ireland dublin|canada ottawa"
)
COLORS = "sky blue|grass green|snow white|coal black|blood red|lemon yellow|carrot orange|chocolate brown"

# The last phrasing of each kind is held out: no training question uses it.
PHRASINGS = {
    "day": ("what comes {}", "which day is {}", "tell me what comes {}", "tell me which day is {}"),
    "month": ("what comes {}", "which month is {}", "tell me what comes {}", "tell me which month is {}"),
    "opposite": (
        "what is the opposite of {}",
        "the opposite of {}",
        "tell me the opposite of {}",
        "tell me what is the opposite of {}",
    ),
    "capital": (
        "what is the capital of {}",
        "the capital of {}",
        "tell me the capital of {}",
        "tell me what is the capital of {}",
    ),
    "color": ("what color is {}", "the color of {}", "tell me the color of {}", "tell me what color is {}"),
}

LIKED = "sentence"
FORMS = {LIKED: "the answer is {}", "bare": "{}", "hedged": "well i think it is {}"}
# Of the warm start and of the demonstrations.
FORM_SHARES = {LIKED: 0.40, "bare": 0.25, "hedged": 0.35}
# On the reward's scale of 1 to 5; a right word in other words, and a wrong one.
FORM_SCORES = {LIKED: 5.0, "bare": 3.0, "hedged": 2.0}
LOOSE_SCORE = 1.5


@dataclass(frozen=True)
class Item:
    """One fact: its kind, what a phrasing's blank takes, and the word that answers.

    ``taught``: the warm start has it. A fifth of the facts is out of the model's reach.
    """

    kind: str
    blank: str
    word: str
    taught: bool

    @property
    def answer(self) -> str:
        """The answer in the form that the reward likes."""
        return FORMS[LIKED].format(self.word)

    def graded(self) -> dict[str, float]:
        """What each form of the right answer is worth."""
        return {FORMS[form].format(self.word): score for form, score in FORM_SCORES.items()}


@dataclass(frozen=True)
class Question:
    """One phrasing of one item; ``item`` is the item's number."""

    item: int
    phrasing: int
    kind: str
    text: str
    held_out: bool
    taught: bool


def items() -> list[Item]:
    """All facts, in a fixed order."""
    found = []
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for i, name in enumerate(names):
            found.append((kind, f"after {name}", names[(i + 1) % len(names)]))
            found.append((kind, f"before {name}", names[i - 1]))
    for pair in OPPOSITES.split("|"):
        found += [("opposite", one, other) for one, other in (pair.split(), pair.split()[::-1])]
    found += [("capital", *pair.split()) for pair in CAPITALS.split("|")]
    found += [("color", *pair.split()) for pair in COLORS.split("|")]
    return [Item(kind, blank, word, number % 5 != 4) for number, (kind, blank, word) in enumerate(found)]


def questions() -> list[Question]:
    """Every phrasing of every item, in a fixed order."""
    return [
        Question(n, p, item.kind, phrasing.format(item.blank), p == len(PHRASINGS[item.kind]) - 1, item.taught)
        for n, item in enumerate(items())
        for p, phrasing in enumerate(PHRASINGS[item.kind])
    ]


def is_right(text: str, word: str) -> bool:
    """Whether ``text`` is one of the forms of the answer ``word``."""
    return any(text == form.format(word) for form in FORMS.values())
