"""The one number over several tasks, and how much each item does to it.

Of one task the number is lm-eval's. Of several it is the mean over their items; perplexities by one
metric are one perplexity over all their units; a group that lm-eval gives a number of its own has
that number here. What differs otherwise is a mean of the tasks' numbers, each as often as it has
items.

A perplexity is compared by its logarithm, the nats a unit: a ratio of two sums over items. How far
an item moves the ratio is what its error is made of. A number that only all items together have has
an error from drawing them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergeops.errors import EvaluationError
from mergeops.scores.task_score import CORPUS, MEAN, UNITS, UNKNOWN, GroupRule, TaskScore

Tasks = Mapping[str, TaskScore]
Groups = Mapping[str, GroupRule]


@dataclass(frozen=True, eq=False)
class Pooled:
    """The number over some tasks and what it is made of."""

    value: float
    """In which models are compared."""
    by_log: bool
    """Whether it is the logarithm of what is shown."""
    effects: Any
    """``[n]`` how far each item, in the order of the tasks, moves the value; they sum to 0."""
    shares: Any
    """``[n]`` the weight of each item in the value; they sum to 1."""
    resampled: Any
    """``[draws]`` how far drawing items again moves the value; empty where no task needs it."""
    variance: float
    """Of the value, the tasks being given; NaN where one item alone does not tell."""

    @property
    def shown(self) -> float:
        """The value in the unit of the metric."""
        return shown(self.value, self.by_log)


def shown(value: float, by_log: bool) -> float:
    """A value that models are compared in, in the unit of the metric; inf where it is too large."""
    if not by_log:
        return value
    return math.exp(value) if value < 709 else math.inf


def pooled_value(tasks: Tasks, groups: Groups) -> float:
    """The number over all ``tasks`` as it is shown; NaN where there are no items."""
    if is_mean_over_items(tasks, groups):
        values = [item.value for task in tasks.values() for item in task.items]
        return sum(values) / len(values) if values else math.nan
    if len(tasks) == 1:
        return next(iter(tasks.values())).value
    return pool(tasks, groups).shown


def pooled_words(tasks: Tasks, groups: Groups) -> str:
    """What the number over all ``tasks`` is, for a caption."""
    if is_mean_over_items(tasks, groups):
        return "mean over items"
    whole = [name for name, rule in groups.items() if set(rule.tasks) == set(tasks)]
    if whole:
        return f"lm-eval's number of {whole[0]}"
    kinds = {(task.metric, task.kind) for task in tasks.values()}
    if len(tasks) == 1 or (len(kinds) == 1 and {kind for _, kind in kinds} == {UNITS}):
        by_log = ", compared by nats a unit" if all(t.by_log for t in tasks.values()) else ""
        return f"{kinds.pop()[0]} over all items{by_log}"
    return "mean of the tasks' numbers, each as often as it has items"


def is_mean_over_items(tasks: Tasks, groups: Groups) -> bool:
    """Whether the number over ``tasks`` is a plain mean over their items."""
    by_item = all(task.kind == MEAN for task in tasks.values())
    return by_item and all(rule.by_size for rule in _rules(tasks, groups))


def pool(tasks: Tasks, groups: Groups) -> Pooled:
    """The number over all ``tasks``.

    Raises:
        EvaluationError: a score was logged by an older mergeops, which did not say what it is of
            its items.
    """
    for name, task in tasks.items():
        if task.kind == UNKNOWN:
            raise EvaluationError(
                f"task {name}: the score was logged by an older mergeops, which took {task.metric} "
                "for a mean over items; run the command that scored the model again"
            )
    masses, ruled = _masses(tasks, groups)
    total = sum(masses.values())
    parts = [
        _Part.of(task, masses[name] / total, is_shown=name in ruled) for name, task in tasks.items()
    ]
    value = math.fsum(part.share * part.value for part in parts)
    has_draws = any(task.kind == CORPUS for task in tasks.values())
    # Tasks are given where one is drawn again: its items do not say how far it is from the others.
    between = [0.0 if has_draws else part.value - value for part in parts]
    resampled = [part.resampled for part in parts if part.resampled.size]
    return Pooled(
        value=value,
        by_log=not ruled and all(task.by_log for task in tasks.values()),
        effects=np.concatenate(
            [part.effects + b * part.shares for part, b in zip(parts, between, strict=True)]
        ),
        shares=np.concatenate([part.shares for part in parts]),
        resampled=np.sum(resampled, axis=0) if resampled else np.empty(0),
        variance=math.fsum(part.variance for part in parts),
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """One task's part of a pooled number."""

    share: float
    value: float
    effects: Any
    shares: Any
    resampled: Any
    variance: float

    @classmethod
    def of(cls, task: TaskScore, share: float, *, is_shown: bool) -> _Part:
        if task.kind == CORPUS:
            units = len(set(cluster_labels({task.task: task})))
            draws = np.array(task.replicates)
            # A bootstrap of G units sees (G - 1) / G of the variance.
            correction = math.sqrt(units / (units - 1)) if units > 1 else math.nan
            resampled = share * correction * (draws - draws.mean())
            shares = np.full(task.n, share / task.n)
            spread = float((resampled**2).mean())
            return cls(share, task.value, np.zeros(task.n), shares, resampled, spread)
        x = np.array([item.value for item in task.items])
        w = np.array([item.weight for item in task.items])
        ratio = float(x.sum() / w.sum())
        # What is shown is exp(ratio), whose slope is itself.
        value, slope = (task.value, task.value) if is_shown and task.by_log else (ratio, 1.0)
        effects = share * slope * (x - ratio * w) / w.sum()
        n = task.n
        variance = n / (n - 1) * float((effects**2).sum()) if n > 1 else math.nan
        return cls(share, value, effects, share * w / w.sum(), np.empty(0), variance)


def cluster_labels(tasks: Tasks) -> list[str]:
    """One label for each item of the tasks in order; an item without a cluster is its own."""
    return [
        f"{name}:{item.cluster}" if item.cluster else f"{name}#{item.doc_id}"
        for name, task in tasks.items()
        for item in task.items
    ]


def sums_by_label(values: Any, labels: Iterable[str]) -> Any:
    """``[..., n]`` values -> ``[..., labels]`` sums, in the order in which labels first come."""
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(label, len(numbers)) for label in labels])
    if len(numbers) == len(index):
        return values
    flat = np.atleast_2d(values)
    sums = np.array([np.bincount(index, weights=row) for row in flat])
    return sums.reshape(*np.shape(values)[:-1], len(numbers))


def _rules(tasks: Tasks, groups: Groups) -> list[GroupRule]:
    """Of the groups that are here as a whole."""
    return [rule for rule in groups.values() if set(rule.tasks) <= set(tasks)]


def _masses(tasks: Tasks, groups: Groups) -> tuple[dict[str, float], set[str]]:
    """How much each task counts, and which count as lm-eval's group shows them."""
    rules = _rules(tasks, groups)
    ruled = {name for rule in rules for name in rule.tasks}
    kinds = {(task.kind, task.metric) for task in tasks.values()}
    if not ruled and len(kinds) == 1 and kinds.pop()[0] == UNITS:
        return {n: math.fsum(i.weight for i in task.items) for n, task in tasks.items()}, ruled
    masses = {name: float(task.n) for name, task in tasks.items()}
    for rule in rules:
        if not rule.by_size:
            size = sum(tasks[name].n for name in rule.tasks)
            masses |= dict.fromkeys(rule.tasks, size / len(rule.tasks))
    return masses, ruled
