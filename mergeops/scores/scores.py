"""What a model got on which items of which tasks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.scores.pooling import is_mean_over_items, pooled_value
from mergeops.scores.task_score import MEAN, GroupRule, ItemResult, TaskScore

PARTS = ("dev", "confirm")
"""dev is for choosing; confirm is opened once, for the candidate that was chosen."""


@dataclass(frozen=True)
class Scores:
    """All task scores of one model on one part."""

    weights_sha256: str
    part: str
    tasks: Mapping[str, TaskScore]
    """By task name, in the recipe's order."""
    settings: Mapping[str, str]
    """Batch size, dtype, versions of lm-eval and transformers, ...: logged with the scores."""
    groups: Mapping[str, GroupRule] = field(default_factory=dict)
    """By name: those that the recipe names and lm-eval aggregates by the chosen metric."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, all items included."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Scores:
        """The scores that ``to_dict`` wrote.

        Numbers need not be finite, so the values are taken as they are.

        Raises:
            KeyError, TypeError: a key is missing or unknown.
        """
        tasks = {}
        for name, task in raw["tasks"].items():
            items = tuple(ItemResult(**item) for item in task["items"])
            replicates = tuple(task.get("replicates", ()))
            tasks[name] = TaskScore(**{**task, "items": items, "replicates": replicates})
        groups = {
            name: GroupRule(tuple(group["tasks"]), group["by_size"])
            for name, group in raw.get("groups", {}).items()
        }
        return cls(**{**raw, "tasks": tasks, "groups": groups})

    @property
    def pooled(self) -> float:
        """The number over all tasks that is shown; see ``pooling.pooled_value``."""
        return pooled_value(self.tasks, self.groups)

    @property
    def counted(self) -> tuple[str, ...]:
        """What makes ``pooled`` another number on the same items than the mean of what the tasks
        are scored by without a choice; none for that."""
        chosen = [f"{n}: {task.chosen}" for n, task in self.tasks.items() if task.chosen]
        if is_mean_over_items(self.tasks, self.groups):
            return tuple(chosen)
        kinds = [f"{n}: {task.kind}" for n, task in self.tasks.items() if task.kind != MEAN]
        return (*chosen, *kinds, *(f"{name}: {rule}" for name, rule in self.groups.items()))

    @property
    def higher_is_better(self) -> bool:
        """Which way ``pooled`` goes.

        Raises:
            EvaluationError: some tasks go one way and some the other.
        """
        up = [name for name, task in self.tasks.items() if task.higher_is_better]
        down = [name for name in self.tasks if name not in up]
        if up and down:
            raise EvaluationError(
                f"of {', '.join(up)} higher is better, of {', '.join(down)} lower: no single "
                "number can choose by both; name tasks of one kind in evaluate.tasks"
            )
        return not down

    @property
    def merit(self) -> float:
        """The number that choices are made by, see ``merit``.

        Raises:
            EvaluationError: some tasks go one way and some the other.
        """
        return merit(self.pooled, self.higher_is_better)


def merit(score: float, higher_is_better: bool) -> float:
    """A score that can be compared with ``>``: negated where lower is better, and ``-inf`` where it
    is not finite, since a comparison with NaN would leave the choice to the order."""
    if not math.isfinite(score):
        return -math.inf
    return score if higher_is_better else -score
