"""Six small skills whose questions are generated, with the right answer and three near misses.

A question has a canonical form, its key: ``17:45 is`` and ``5:45 pm is`` ask the same thing. The
hash of the key, and nothing else, says whether it may be trained on, validated on, or scored. So no
seed and no template can leak a scored question into training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
# How many of the smaller unit make one of the larger.
CONVERSIONS = (
    ("km", "m", 1000),
    ("m", "cm", 100),
    ("m", "mm", 1000),
    ("cm", "mm", 10),
    ("kg", "g", 1000),
    ("g", "mg", 1000),
    ("l", "ml", 1000),
    ("l", "cl", 100),
    ("cl", "ml", 10),
)
# Invented words are onset + vowel + ending; no irregular English verb comes out of these.
ONSETS = ("bl", "br", "dw", "fl", "gl", "gw", "kr", "pl", "sm", "sn", "spr", "thr", "tr")
ONSETS += ("vl", "vr", "zl", "zr")
VOWELS = ("a", "e", "i", "o", "u")
# Each ending decides which spelling rule applies.
ENDINGS = ("b", "g", "m", "n", "p", "t", "ck", "lt", "mp", "nd", "nk", "rd", "sk")
ENDINGS += ("sh", "ch", "ss", "x", "rry", "ddy", "nny", "ke", "ne", "ve", "ze")

SPLITS = ("train", "validation", "heldout")


@dataclass(frozen=True)
class Item:
    """One multiple-choice question."""

    skill: str
    key: str
    """The canonical form of the question; equal keys are the same question."""
    prompt: str
    choices: tuple[str, ...]
    """The right answer and near misses (three, of the skills here), without a leading space."""
    answer: int
    """Index of the right answer in ``choices``."""

    @property
    def right(self) -> str:
        """The right answer."""
        return self.choices[self.answer]


# What a skill returns: key, prompt, right answer, candidate wrong answers (best ones first).
Draft = tuple[str, str, str, list[str]]


def clock(random: Random) -> Draft:
    """From 24 hours to am and pm and back; near misses are hours off or in the other half."""
    hour, minute = random.randrange(24), random.randrange(60)

    def long(hours: int) -> str:
        return f"{(hour + hours) % 24}:{minute:02d}"

    def short(hours: int) -> str:
        shifted = (hour + hours) % 24
        return f"{(shifted - 1) % 12 + 1}:{minute:02d} {'am' if shifted < 12 else 'pm'}"

    to_short = random.random() < 0.5
    ask, answer = (long, short) if to_short else (short, long)
    wrong = [answer(hours) for hours in random.sample((-2, -1, 1, 2, 12), 5)]
    return long(0), f"{ask(0)} is", answer(0), wrong


def dates(random: Random) -> Draft:
    """The day after or before a date; near misses have one part wrong or go the other way."""
    weekday, month, day = random.randrange(7), random.choice(MONTHS), random.randint(4, 25)
    word, step = random.choice((("after", 1), ("before", -1)))

    def name(weekday_steps: int, day_steps: int) -> str:
        return f"{WEEKDAYS[(weekday + weekday_steps) % 7]} {month} {day + day_steps}"

    wrong = [name(step, -step), name(-step, step), name(-step, -step), name(step, 2 * step)]
    wrong.append(name(2 * step, step))
    random.shuffle(wrong)
    start = name(0, 0)
    return f"{start} {word}", f"The day {word} {start} is", name(step, step), wrong


def units(random: Random) -> Draft:
    """Convert to the smaller or to the larger unit; near misses have too many or too few zeros."""
    large, small, factor = random.choice(CONVERSIONS)
    count = random.randint(2, 299)
    if random.random() < 0.5:
        source, right, target = f"{count} {large}", count * factor, small
        wrong = [count * other for other in (1, 10, 100, 1000, 10000) if other != factor]
    else:
        source, right, target = f"{count * factor} {small}", count, large
        wrong = [count * other for other in (10, 100, 1000)]
        if count % 10 == 0:
            wrong.append(count // 10)
    random.shuffle(wrong)
    key = f"{source} {target}"
    return key, f"{source} in {target} is", f"{right} {target}", [f"{w} {target}" for w in wrong]


def sorting(random: Random) -> Draft:
    """Sort four close numbers up or down; near misses swap neighbours or run the other way."""
    first = random.randint(2, 60)
    numbers = random.sample(range(first, first + 40), 4)
    word = random.choice(("up", "down"))
    ordered = sorted(numbers, reverse=word == "down")

    def text(values: list[int]) -> str:
        return " ".join(map(str, values))

    wrong = [text(ordered[::-1])]
    for i in range(3):
        swapped = list(ordered)
        swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
        wrong.append(text(swapped))
    random.shuffle(wrong)
    return f"{word} {sorted(numbers)}", f"Sort {word} {text(numbers)} :", text(ordered), wrong


def comparison(random: Random) -> Draft:
    """Pick the largest or smallest of four close numbers; the near misses are the other three."""
    hundreds = 100 * random.randint(1, 9)
    numbers = [hundreds + rest for rest in random.sample(range(10, 100), 4)]
    word, right = random.choice((("largest", max(numbers)), ("smallest", min(numbers))))
    listed = ", ".join(map(str, numbers))
    wrong = [str(number) for number in numbers if number != right]
    return f"{word} {sorted(numbers)}", f"The {word} of {listed} is", str(right), wrong


def spelling(random: Random) -> Draft:
    """Inflect an invented word by the regular rules (the wug test, Berko 1958)."""
    word = random.choice(ONSETS) + random.choice(VOWELS) + random.choice(ENDINGS)
    form, inflect = random.choice((("plural", plural), ("past", past), ("ing form", ing_form)))
    right = inflect(word)
    stem = word[:-1]
    candidates = {
        "plural": [word + "s", word + "es", stem + "ies", word + word[-1] + "es", stem + "es"],
        "past": [word + "ed", word + word[-1] + "ed", stem + "ied", word + "d", stem + "ed"],
        "ing form": [word + "ing", word + word[-1] + "ing", stem + "ing", stem + "ying"],
    }[form]
    wrong = [candidate for candidate in candidates if candidate != right]
    random.shuffle(wrong)
    return f"{form} {word}", f"The {form} of {word} is", right, wrong


def plural(word: str) -> str:
    """The regular plural of a noun."""
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("sh", "ch", "s", "x")) else "s")


def past(word: str) -> str:
    """The regular past tense of a verb of one syllable (or one ending in a consonant and y)."""
    if word.endswith("e"):
        return word + "d"
    if word.endswith("y"):
        return word[:-1] + "ied"
    return (word + word[-1] if _doubles(word) else word) + "ed"


def ing_form(word: str) -> str:
    """The present participle of a verb of one syllable."""
    if word.endswith("e"):
        return word[:-1] + "ing"
    return (word + word[-1] if _doubles(word) else word) + "ing"


def _doubles(word: str) -> bool:
    return word[-2] in VOWELS and word[-1] not in (*VOWELS, "x", "y")


SKILLS: dict[str, Callable[[Random], Draft]] = {
    "clock": clock,
    "comparison": comparison,
    "dates": dates,
    "sorting": sorting,
    "spelling": spelling,
    "units": units,
}


def split_of(skill: str, key: str) -> str:
    """The one split that a question may appear in: 70 % train, 5 % validation, 25 % heldout."""
    bucket = hashlib.sha256(f"{skill}\n{key}".encode()).digest()[0] / 256
    return "train" if bucket < 0.70 else "validation" if bucket < 0.75 else "heldout"


def stream(skill: str, split: str, seed: int) -> Iterator[Item]:
    """Endless random items of one skill and split; a question may come again.

    Raises:
        KeyError: for an unknown skill.
    """
    make = SKILLS[skill]
    random = Random(f"{skill}/{split}/{seed}")
    while True:
        key, prompt, right, wrong = make(random)
        distinct = list(dict.fromkeys(choice for choice in wrong if choice != right))[:3]
        if split_of(skill, key) != split or len(distinct) < 3:
            continue
        choices = [right, *distinct]
        random.shuffle(choices)
        yield Item(skill, key, prompt, tuple(choices), choices.index(right))


def unique(skill: str, split: str, n: int, seed: int) -> list[Item]:
    """``n`` items of one skill and split, no question twice.

    Raises:
        ValueError: when the split has too few different questions.
    """
    found: dict[str, Item] = {}
    for item in islice(stream(skill, split, seed), 100 * n):
        found.setdefault(item.key, item)
        if len(found) == n:
            return list(found.values())
    raise ValueError(f"{skill}/{split} has {len(found)} different questions, {n} were asked for")


def mixture(shares: dict[str, float], n: int, seed: int, split: str = "train") -> list[Item]:
    """``n`` items in random order, of the skills in ``shares`` in those proportions."""
    random = Random(f"mixture/{split}/{seed}")
    streams = {skill: stream(skill, split, seed) for skill in shares}
    picks = random.choices(list(shares), weights=list(shares.values()), k=n)
    return [next(streams[skill]) for skill in picks]
