"""What a study makes large, and what its candidates have to keep."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeops.errors import ConfigError
from mergeops.evaluate import TaskSet
from mergeops.schema import did_you_mean
from mergeops.scores import Scores

Values = tuple[float, ...]
"""One for each objective; larger is better."""


@dataclass(frozen=True)
class Objective:
    """A number that is to be large."""

    name: str
    """Of a task or a group of tasks; ``dev`` is all of them."""
    tasks: tuple[str, ...] | None
    """None for all."""

    def of(self, scores: Scores) -> Scores:
        """The part of the scores that it looks at."""
        if self.tasks is None:
            return scores
        return dataclasses.replace(scores, tasks={name: scores.tasks[name] for name in self.tasks})

    def merit(self, scores: Scores) -> float:
        """The number, larger is better."""
        return self.of(scores).merit


EVERYTHING = Objective("dev", None)


@dataclass(frozen=True)
class Limit:
    """A task on which a candidate may not be worse than the reference by more than so much."""

    task: str
    least: float
    """The smallest difference to the reference, e.g. -0.01."""
    tasks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"search.constraints.{self.task} is {self.least:+g}"


def read_objectives(names: Sequence[str], tasks: TaskSet) -> tuple[Objective, ...]:
    """The objectives of a study; none named is everything together.

    Raises:
        ConfigError: a name that is no task or group, one twice, or one alone.
    """
    if not names:
        return (EVERYTHING,)
    if len(set(names)) < 2:
        raise ConfigError(
            f"search.objectives is {list(names)}; it takes two tasks or more, or none for all "
            "tasks together"
        )
    return tuple(
        Objective(name, _tasks("search.objectives", name, tasks)) for name in dict.fromkeys(names)
    )


def read_limits(limits: Mapping[str, Any], tasks: TaskSet) -> tuple[Limit, ...]:
    """What candidates have to keep.

    Raises:
        ConfigError: a name that is no task or group, or no number from -1 to 1.
    """
    found = []
    for name, least in limits.items():
        own = _tasks("search.constraints", name, tasks)
        is_number = isinstance(least, int | float) and not isinstance(least, bool)
        if not is_number or not -1 <= least <= 1:
            raise ConfigError(
                f"search.constraints.{name} is {least!r}; it takes the smallest difference that is "
                "allowed, a number from -1 to 1, e.g. -0.01"
            )
        found.append(Limit(name, float(least), own))
    return tuple(found)


def _tasks(where: str, name: str, tasks: TaskSet) -> tuple[str, ...]:
    if name in tasks.tasks:
        return (name,)
    if name in tasks.groups:
        return tasks.groups[name].tasks
    known = [*tasks.tasks, *tasks.groups]
    raise ConfigError(
        f"{where}: task {name!r} is not scored; {did_you_mean(name, known)}the tasks are: "
        f"{', '.join(known)}"
    )


def dominates(mine: Values, theirs: Values) -> bool:
    """Whether one is at least as good in everything and better in something."""
    return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))


def front(values: Mapping[str, Values]) -> list[str]:
    """Those that nobody dominates, the best by the first objective first; equals once."""
    seen: dict[Values, str] = {}
    for name, own in values.items():
        if not any(dominates(other, own) for other in values.values()):
            seen.setdefault(own, name)
    return [name for _, name in sorted(seen.items(), key=lambda pair: pair[0], reverse=True)]


def knee(values: Mapping[str, Values]) -> str:
    """Of a front the one that is nearest to the best of everything.

    Each objective counts from its worst to its best on the front; the distance is Euclidean
    (the compromise solution of Zeleny 1973). The first of equals.
    """
    columns = list(zip(*values.values(), strict=True))
    best, worst = [max(c) for c in columns], [min(c) for c in columns]

    def distance(own: Values) -> float:
        spans = zip(own, best, worst, strict=True)
        return math.hypot(*((b - v) / (b - w) if b > w else 0.0 for v, b, w in spans))

    return min(values, key=lambda name: distance(values[name]))
