"""What the pocket model is asked: small sums, what comes before and after, opposites, capitals, colours.

An answer repeats its question, so that its speech takes longer than its one informative word.
"""

from dataclasses import dataclass

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
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
    "sum": ("what is {}", "how much is {}", "tell me {}", "tell me what is {}"),
    "difference": ("what is {}", "how much is {}", "tell me {}", "tell me what is {}"),
    "day": ("what comes {}", "which day is {}", "tell me what comes {}", "tell me which day is {}"),
    "month": ("what comes {}", "which month is {}", "tell me what comes {}", "tell me which month is {}"),
    "number": ("what comes {}", "which number is {}", "tell me what comes {}", "tell me which number is {}"),
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


@dataclass(frozen=True)
class Item:
    """One fact: its kind, what a phrasing's blank takes, and the answer in words."""

    kind: str
    blank: str
    answer: str


@dataclass(frozen=True)
class Question:
    """One phrasing of one item; ``item`` is the item's number."""

    item: int
    phrasing: int
    kind: str
    text: str
    answer: str
    held_out: bool


def items() -> list[Item]:
    """All facts, in a fixed order."""
    found = []
    for a in range(1, 10):
        found += [Item("sum", s, f"{s} is {NUMBERS[a + b]}") for b in range(1, 10) for s in [_sum(a, "plus", b)]]
        found += [
            Item("difference", s, f"{s} is {NUMBERS[a - b]}") for b in range(1, a + 1) for s in [_sum(a, "minus", b)]
        ]
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for i, name in enumerate(names):
            found.append(Item(kind, f"after {name}", f"after {name} comes {names[(i + 1) % len(names)]}"))
            found.append(Item(kind, f"before {name}", f"before {name} comes {names[i - 1]}"))
    for i in range(1, 20):
        found.append(Item("number", f"after {NUMBERS[i]}", f"after {NUMBERS[i]} comes {NUMBERS[i + 1]}"))
        found.append(Item("number", f"before {NUMBERS[i]}", f"before {NUMBERS[i]} comes {NUMBERS[i - 1]}"))
    for pair in OPPOSITES.split("|"):
        for one, other in (pair.split(), pair.split()[::-1]):
            found.append(Item("opposite", one, f"the opposite of {one} is {other}"))
    for pair in CAPITALS.split("|"):
        country, city = pair.split()
        found.append(Item("capital", country, f"the capital of {country} is {city}"))
    for pair in COLORS.split("|"):
        thing, color = pair.split()
        found.append(Item("color", thing, f"{thing} is {color}"))
    return found


def questions() -> list[Question]:
    """Every phrasing of every item, in a fixed order."""
    return [
        Question(number, p, item.kind, phrasing.format(item.blank), item.answer, p == len(PHRASINGS[item.kind]) - 1)
        for number, item in enumerate(items())
        for p, phrasing in enumerate(PHRASINGS[item.kind])
    ]


def _sum(a: int, operation: str, b: int) -> str:
    return f"{NUMBERS[a]} {operation} {NUMBERS[b]}"
