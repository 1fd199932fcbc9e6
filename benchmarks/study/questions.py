"""Multiple-choice questions from folders of real data, and the lm-eval tasks that ask them.

A folder holds ``train.jsonl`` and ``test.jsonl`` or ``dev.jsonl``, of one of two shapes: questions
with lettered choices (CommonsenseQA), or word problems with worked answers (GSM8K). Training draws
from the first file only and tasks from the second only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import click

from demo.skills import Item
from demo.tasks import write_task

SKILLS = ("commonsense", "calculation", "operation")
"""What runs are trained on, and what choices are made by."""
TRANSFER = "relation"
"""A task that no run is trained on and no choice is made by."""
LETTERS = "letters"
"""Commonsense in another template: the choices are listed, and a letter is the answer."""

_STEP = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>")
"""A calculation of two whole numbers, as GSM8K marks it."""
_SIGNS = "+-*/"
_LONGEST = 150
"""Characters of a word problem; twice as long costs twice the time."""


def read_items(folders: Iterable[Path], split: str) -> dict[str, list[Item]]:
    """Every question that the folders hold, by skill, in the files' order.

    Args:
        folders: of data.
        split: ``train`` or ``test``.

    Raises:
        click.UsageError: a folder without a file of the split, or of another shape.
    """
    found: dict[str, list[Item]] = {}
    for folder in folders:
        rows = list(_rows(folder, split))
        if "answerKey" in rows[0]:
            makers: Mapping[str, Any] = {
                "commonsense": _commonsense,
                LETTERS: _letters,
                TRANSFER: _relation,
            }
        elif "####" in str(rows[0].get("answer")):
            makers = {"calculation": _calculation, "operation": _operation}
        else:
            raise click.UsageError(
                f"{folder} has rows with {', '.join(rows[0])}; known are those of CommonsenseQA "
                "(question, answerKey) and of GSM8K (question, answer with ####)"
            )
        for skill, make in makers.items():
            made = (make(row, i) for i, row in enumerate(rows))
            found.setdefault(skill, []).extend(item for item in made if item is not None)
    return found


def write_tasks(folder: Path, items: Mapping[str, list[Item]], count: int) -> list[str]:
    """Write ``count`` questions of each skill, drawn once, as JSONL and YAML; give the names."""
    names = [*SKILLS, TRANSFER]
    for name in names:
        drawn = Random(name).sample(items[name], min(count, len(items[name])))
        write_task(folder, name, drawn)
    return names


def _rows(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    names = ("train.jsonl",) if split == "train" else ("test.jsonl", "dev.jsonl")
    for name in names:
        if (folder / name).is_file():
            for line in (folder / name).read_text(encoding="utf-8").splitlines():
                yield json.loads(line)
            return
    raise click.UsageError(f"{folder} has no {' or '.join(names)}")


def _commonsense(row: Mapping[str, Any], _place: int) -> Item:
    question = row["question"]
    texts = tuple(choice["text"] for choice in question["choices"])
    answer = [choice["label"] for choice in question["choices"]].index(row["answerKey"])
    prompt = f"Question: {question['stem']}\nAnswer:"
    return Item("commonsense", row["id"], prompt, texts, answer)


def _letters(row: Mapping[str, Any], place: int) -> Item:
    item = _commonsense(row, place)
    letters = "ABCDE"[: len(item.choices)]
    listed = "".join(f"\n{x}. {text}" for x, text in zip(letters, item.choices, strict=True))
    prompt = item.prompt.replace("\nAnswer:", f"{listed}\nAnswer:")
    return Item(LETTERS, item.key, prompt, tuple(letters), item.answer)


def _relation(row: Mapping[str, Any], place: int) -> Item:
    item = _commonsense(row, place)
    concept = row["question"]["question_concept"]
    prompt = f"What goes best with the word {concept} is"
    return Item(TRANSFER, item.key, prompt, item.choices, item.answer)


def _calculation(row: Mapping[str, Any], place: int) -> Item | None:
    """A line of the worked answer up to its first result; three wrong results by rule."""
    for line in row["answer"].splitlines():
        step = _STEP.search(line)
        before = line[: step.start()].rstrip() if step else ""
        if not step or not before.endswith("=") or len(before) > _LONGEST // 2:
            continue
        a, sign, b, right = int(step[1]), step[2], int(step[3]), int(step[4])
        random = Random(f"calculation/{place}")
        others = [a + b, abs(a - b), a * b, a // max(b, 1)]
        del others[_SIGNS.index(sign)]
        near = [right + 1, right - 1, right + 10, right - 10, right + 2, right - 2]
        random.shuffle(others)
        random.shuffle(near)
        wrong = [n for n in dict.fromkeys([others[0], *near]) if n >= 0 and n != right][:3]
        return _shuffled("calculation", f"{place}", before, str(right), map(str, wrong), random)
    return None


def _operation(row: Mapping[str, Any], place: int) -> Item | None:
    """A short problem and the first number of its first step; the signs are the choices."""
    step = _STEP.search(row["answer"])
    if not step or len(row["question"]) > _LONGEST:
        return None
    prompt = f"Question: {row['question']}\nAnswer: {step[1]}"
    wrong = (f"{sign} {step[3]}" for sign in _SIGNS if sign != step[2])
    random = Random(f"operation/{place}")
    return _shuffled("operation", f"{place}", prompt, f"{step[2]} {step[3]}", wrong, random)


def _shuffled(
    skill: str, key: str, prompt: str, right: str, wrong: Iterable[str], random: Random
) -> Item:
    choices = [right, *wrong]
    random.shuffle(choices)
    return Item(skill, key, prompt, tuple(choices), choices.index(right))
