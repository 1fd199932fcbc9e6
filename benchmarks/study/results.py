"""The results file: one line for each model that was judged, appended as soon as it is there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.scores import MEAN, ItemResult, Scores, TaskScore

Answers = Mapping[str, str]
"""Task -> a 1 for each right answer and a 0 for each wrong one, in the order of the items."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model."""

    kind: str
    """``parent``, ``default``, ``without``, ``window``, ``search`` or ``inspect``."""
    name: str
    """Of the run, the method, what was left out, or the window."""
    pool: str = ""
    """Which sources it was made of."""
    sources: tuple[str, ...] = ()
    dev: Answers = field(default_factory=dict)
    """On the items that choices are made by."""
    held: Answers = field(default_factory=dict)
    """On the items that no choice has seen."""
    merge_cpu_s: float = 0.0
    """Processor seconds of merging: of all threads, reading and writing included."""
    merge_wall_s: float = 0.0
    score_cpu_s: float = 0.0
    bytes_read: int = 0
    """Of the sources' and the base's weights, where the base is read."""
    bytes_written: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else is known: the parameters that a search chose, what it asked."""
    error: str = ""
    """Why there is no model."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What is done once."""
        return self.kind, self.name, self.pool


class ResultsFile:
    """Lines of JSON; a line that a kill cut short is as if it were not there.

    Args:
        path: made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Result]:
        """The last line of each key."""
        found: dict[tuple[str, str, str], Result] = {}
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for line in text.splitlines():
            try:
                raw = json.loads(line)
            except ValueError:
                continue
            result = Result(**{**raw, "sources": tuple(raw["sources"])})
            found[result.key] = result
        yield from found.values()

    def add(self, result: Result) -> None:
        """Append a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        cut = "\n" if text and not text.endswith("\n") else ""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(cut + json.dumps(dataclasses.asdict(result)) + "\n")


def answers_of(scores: Scores) -> dict[str, str]:
    """What is kept of scores of items that are right or wrong."""
    return {
        name: "".join("1" if item.value else "0" for item in task.items)
        for name, task in scores.tasks.items()
    }


def scores_of(answers: Answers) -> Scores:
    """Scores as mergeops compares them; all answers of a task are on the same items."""
    tasks = {}
    for name, text in answers.items():
        items = tuple(ItemResult(i, "", "", "", float(bit)) for i, bit in enumerate(text))
        mean = text.count("1") / len(text)
        tasks[name] = TaskScore(name, "acc", mean, None, items, "", f"{len(text)} items", kind=MEAN)
    return Scores("", "confirm", tasks, {})
