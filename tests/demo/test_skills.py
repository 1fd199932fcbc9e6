"""The demo's questions: right answers, wrong answers, and no scored question in training."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from demo.skills import CONVERSIONS, SKILLS, SPLITS, Item, mixture, split_of, stream, unique
from demo.tasks import write_tasks

# Correct English, written out: each spelling rule at least once in each form.
INFLECTED = {
    "plural blick": "blicks",
    "plural flosh": "floshes",
    "plural krach": "kraches",
    "plural sprass": "sprasses",
    "plural trix": "trixes",
    "plural smurry": "smurries",
    "plural plake": "plakes",
    "past plag": "plagged",
    "past bramp": "bramped",
    "past trix": "trixed",
    "past smurry": "smurried",
    "past plake": "plaked",
    "ing form plag": "plagging",
    "ing form bramp": "bramping",
    "ing form smurry": "smurrying",
    "ing form plake": "plaking",
}


def clock_solution(prompt: str) -> str:
    text = prompt.removesuffix(" is")
    if text.endswith("m"):
        time = datetime.datetime.strptime(text.upper(), "%I:%M %p")
        return f"{time.hour}:{time.minute:02d}"
    time = datetime.datetime.strptime(text, "%H:%M")
    return time.strftime("%I:%M %p").lstrip("0").lower()


def comparison_solution(prompt: str) -> str:
    numbers = [int(number) for number in re.findall(r"\d+", prompt)]
    return str(sorted(numbers)[-1 if "largest" in prompt else 0])


def dates_solution(prompt: str) -> str:
    word, weekday, month, day = prompt.removeprefix("The day ").removesuffix(" is").split()
    # Some year has that weekday on that date; the calendar does the rest.
    for year in range(2000, 2030):
        date = datetime.datetime.strptime(f"{year} {month} {day}", "%Y %B %d")
        if date.strftime("%A") == weekday:
            other = date + datetime.timedelta(days=1 if word == "after" else -1)
            return f"{other:%A} {other:%B} {other.day}"
    raise AssertionError(prompt)


def sorting_solution(prompt: str) -> str:
    left = [int(number) for number in re.findall(r"\d+", prompt)]
    ordered = []
    while left:
        ordered.append(min(left) if " up " in prompt else max(left))
        left.remove(ordered[-1])
    return " ".join(map(str, ordered))


def spelling_solution(prompt: str) -> str:
    found = re.fullmatch(r"The (plural|past|ing form) of (\w+) is", prompt)
    assert found is not None
    form, word = found.groups()
    doubled = re.sub(r"([aeiou])([bgmnpt])$", r"\1\2\2", word)
    if form == "plural":
        if re.search(r"[^aeiou]y$", word):
            return re.sub(r"y$", "ies", word)
        return word + ("es" if re.search(r"(ss|sh|ch|x)$", word) else "s")
    if form == "past":
        if re.search(r"[^aeiou]y$", word):
            return re.sub(r"y$", "ied", word)
        return re.sub(r"e$", "", doubled) + "ed"
    return re.sub(r"e$", "", doubled) + "ing"


def units_solution(prompt: str) -> str:
    found = re.fullmatch(r"(\d+) (\w+) in (\w+) is", prompt)
    assert found is not None
    count, source, target = int(found[1]), found[2], found[3]
    metres = {"k": 3, "": 0, "c": -2, "m": -3}

    def exponent(unit: str) -> int:
        return metres[unit[:-1]]

    shift = exponent(source) - exponent(target)
    value = count * 10**shift if shift >= 0 else count // 10**-shift
    return f"{value} {target}"


SOLUTIONS: dict[str, Callable[[str], str]] = {
    "clock": clock_solution,
    "comparison": comparison_solution,
    "dates": dates_solution,
    "sorting": sorting_solution,
    "spelling": spelling_solution,
    "units": units_solution,
}


def some(skill: str) -> list[Item]:
    return [item for split in SPLITS for item in islice(stream(skill, split, 7), 400)]


@pytest.mark.parametrize("skill", SKILLS)
def test_the_marked_choice_is_what_an_independent_solver_says(skill: str) -> None:
    for item in some(skill):
        assert item.right == SOLUTIONS[skill](item.prompt), item


@pytest.mark.parametrize("skill", SKILLS)
def test_four_choices_differ_and_only_one_is_right(skill: str) -> None:
    for item in some(skill):
        assert len(set(item.choices)) == 4, item
        assert item.choices.count(SOLUTIONS[skill](item.prompt)) == 1, item


@pytest.mark.parametrize("skill", SKILLS)
def test_the_right_choice_is_in_every_place_about_equally_often(skill: str) -> None:
    places = [item.answer for item in some(skill)]
    assert all(0.2 < places.count(place) / len(places) < 0.3 for place in range(4))


def test_spelling_follows_english_rules() -> None:
    for question, right in INFLECTED.items():
        form, word = question.rsplit(" ", 1)
        assert spelling_solution(f"The {form} of {word} is") == right


def test_conversions_are_powers_of_ten_of_the_metric_prefixes() -> None:
    assert all(
        units_solution(f"3 {large} in {small} is") == f"{3 * factor} {small}"
        for large, small, factor in CONVERSIONS
    )


@pytest.mark.parametrize("skill", SKILLS)
def test_no_question_is_in_two_splits_whatever_the_seed(skill: str) -> None:
    keys = {
        split: {item.key for seed in (0, 1) for item in islice(stream(skill, split, seed), 800)}
        for split in SPLITS
    }
    assert not keys["train"] & keys["heldout"]
    assert not keys["validation"] & (keys["train"] | keys["heldout"])
    assert all(split_of(skill, key) == split for split in SPLITS for key in keys[split])


def test_a_question_asked_the_other_way_round_has_the_same_key() -> None:
    keys: dict[str, set[str]] = {}
    for item in islice(stream("clock", "heldout", 0), 2000):
        keys.setdefault(item.key, set()).add(item.prompt)
    assert max(map(len, keys.values())) == 2


def test_the_same_seed_gives_the_same_items_and_another_seed_gives_others() -> None:
    shares = {"dates": 1.0, "units": 3.0}
    assert mixture(shares, 50, 3) == mixture(shares, 50, 3)
    assert mixture(shares, 50, 3) != mixture(shares, 50, 4)


def test_a_mixture_keeps_its_proportions() -> None:
    items = mixture({"dates": 1.0, "units": 3.0}, 2000, 0)
    assert sum(item.skill == "units" for item in items) == pytest.approx(1500, abs=80)


def test_more_items_than_there_are_questions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clock/heldout has \d+ different questions, 1000 were"):
        unique("clock", "heldout", 1000, 0)


def test_tasks_have_each_question_once_and_load_in_lm_eval(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    names = write_tasks(tmp_path / "tasks", seed=0, n=40)
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    loaded = manager.load(names)["tasks"]
    assert sorted(loaded) == sorted(SKILLS)
    for name, task in loaded.items():
        lines = (tmp_path / "tasks" / f"{name}.jsonl").read_text().splitlines()
        assert len(set(lines)) == 40
        first = json.loads(lines[0])
        document = next(iter(task.test_docs()))
        assert task.doc_to_text(document) == first["prompt"]
        assert task.doc_to_choice(document) == first["choices"]
        assert task.doc_to_target(document) == first["answer"]
        assert task.higher_is_better() == {"acc": True}
