"""What a model got on which items of which tasks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.errors import EvaluationError

PARTS = ("dev", "confirm")
"""dev is for choosing; confirm is opened once, for the candidate that was chosen."""


@dataclass(frozen=True)
class ItemResult:
    """One item's result under a task's chosen metric."""

    doc_id: int
    doc_hash: str
    prompt_hash: str
    target_hash: str
    value: float
    """The metric's value on this item: 0.0 or 1.0 for acc and exact_match."""
    cluster: str = ""
    """What the item shares with others of its task (a passage, a template), where
    ``evaluate.clusters`` names it; items of one cluster are not independent."""


@dataclass(frozen=True)
class TaskScore:
    """One task's score on one part of its items."""

    task: str
    metric: str
    """lm-eval's metric name without filter, e.g. ``acc``."""
    value: float
    """Mean over items, unless the metric aggregates otherwise (then as lm-eval gives it)."""
    stderr: float | None
    """Standard error as lm-eval gives it; None where it has none."""
    items: tuple[ItemResult, ...]
    """In doc_id order."""
    version: str
    """The task's version."""
    digest: str
    """sha256 of task settings and item hashes: equal digests mean the same questions."""
    higher_is_better: bool = True

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.items)


@dataclass(frozen=True)
class Scores:
    """All task scores of one model on one part."""

    weights_sha256: str
    part: str
    tasks: Mapping[str, TaskScore]
    """By task name, in the recipe's order."""
    settings: Mapping[str, str]
    """Batch size, dtype, versions of lm-eval and transformers, ...: logged with the scores."""

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
        tasks = {
            name: TaskScore(
                **{**task, "items": tuple(ItemResult(**item) for item in task["items"])}
            )
            for name, task in raw["tasks"].items()
        }
        return cls(**{**raw, "tasks": tasks})

    @property
    def pooled(self) -> float:
        """Mean over the items of all tasks: the number that is shown."""
        values = [item.value for task in self.tasks.values() for item in task.items]
        return sum(values) / len(values) if values else float("nan")

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
