"""The leaderboard: parents and merges side by side, each with its error and its paired difference.

Two scores with overlapping intervals can still be clearly different: the models answered the same
items. So the column to read is the difference to the reference, whose interval is paired.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergeops.errors import EvaluationError
from mergeops.scores import (
    Comparison,
    Estimate,
    Scores,
    compare,
    merit,
    pooled_score,
    pooled_words,
    task_estimate,
)

KINDS = ("base", "source", "merge")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Origin:
    """Where a model's scores are kept."""

    experiment: str
    run_id: str
    model_id: str | None
    weights_sha256: str
    url: str | None
    """Page of the run; None where no server serves it."""


@dataclass(frozen=True)
class Entry:
    """A model to rank."""

    name: str
    kind: str
    """base, source or merge."""
    scores: Scores
    origin: Origin | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A ranked model."""

    rank: int
    name: str
    kind: str
    n: int
    """Items of all tasks."""
    pooled: float
    """The number over all tasks, by which models are ranked."""
    stderr: float | None
    """Of ``pooled``, the tasks being given: sampling error within each task."""
    low: float
    high: float
    """95 % interval of ``pooled``, clusters counted; from -inf to inf where there is none."""
    tasks: Mapping[str, Estimate]
    """Task -> score and standard error as lm-eval gives them, and 95 % interval."""
    difference: Comparison | None
    """Against the reference, paired by item; None for the reference itself."""
    origin: Origin | None = None
    """None where the scores come from this very command."""
    groups: Mapping[str, Estimate] = field(default_factory=dict)
    """Group of tasks -> the number that lm-eval gives it."""

    @property
    def estimate(self) -> Estimate:
        """``pooled`` as it is shown."""
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return Estimate(self.pooled, (self.low, self.high) if known else None, self.stderr)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; what is not there, or not finite, is None."""
        keys = ("rank", "name", "kind", "n", "pooled", "stderr")
        return {
            **{key: getattr(self, key) for key in keys},
            "low": _finite(self.low),
            "high": _finite(self.high),
            "tasks": {task: _plain_score(score) for task, score in self.tasks.items()},
            **(
                {"groups": {group: _plain_score(score) for group, score in self.groups.items()}}
                if self.groups
                else {}
            ),
            "difference": _plain(self.difference),
            **({"origin": dataclasses.asdict(self.origin)} if self.origin else {}),
        }


@dataclass(frozen=True)
class Leaderboard:
    """Models in the order of their pooled score, the best first."""

    part: str
    tasks: tuple[str, ...]
    metrics: Mapping[str, str]
    """Task -> metric."""
    reference: str | None
    """The model that differences are against; None where there are only merges."""
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    """Tasks that not every model was scored on."""
    pooled_as: str = "mean over items"
    """What the number over all tasks is."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of tasks with a number of their own."""
        return tuple(self.rows[0].groups) if self.rows else ()

    @property
    def reference_row(self) -> Row | None:
        """The row that differences are against."""
        return next((row for row in self.rows if row.name == self.reference), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; what is not there, or not finite, is None."""
        return {
            "part": self.part,
            "tasks": list(self.tasks),
            "metrics": dict(self.metrics),
            "reference": self.reference,
            "left_out": list(self.left_out),
            "rows": [row.to_dict() for row in self.rows],
        }


@dataclass(frozen=True)
class LeftOut:
    """A scored model that cannot stand on the leaderboard."""

    name: str
    experiment: str
    reason: str


@dataclass(frozen=True)
class Compared:
    """Models of one or more experiments that answered the same questions."""

    experiments: tuple[str, ...]
    board: Leaderboard
    left_out: tuple[LeftOut, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    """Experiment -> its page in MLflow; empty where no server serves any."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for ``--json``."""
        return {
            **self.board.to_dict(),
            "experiments": list(self.experiments),
            "models_left_out": [dataclasses.asdict(model) for model in self.left_out],
            "links": dict(self.links),
        }


def make_leaderboard(entries: Sequence[Entry], reference: str | None = None) -> Leaderboard:
    """Rank models by their pooled score and compare each with one of them.

    Args:
        reference: a name; None takes the best source, or where there is none the best base.

    Raises:
        EvaluationError: no entries, a name twice, an unknown kind or reference, no task in common,
            or scores that cannot be compared (other part, other items).
    """
    if not entries:
        raise EvaluationError("there are no scored models for a leaderboard")
    _check(entries)
    tasks, left_out = _shared_tasks(entries)
    directions = {entries[0].scores.tasks[task].higher_is_better for task in tasks}
    if len(directions) > 1:
        raise EvaluationError(
            "the tasks' metrics do not point the same way, so no score over all of them can rank "
            "models; score tasks of the other direction apart, or choose metrics with "
            "evaluate.metrics"
        )
    ranked = sorted(
        entries, key=lambda e: -merit(pooled_score(e.scores, tasks).value, directions == {True})
    )
    chosen = _reference(ranked, reference)
    return Leaderboard(
        part=entries[0].scores.part,
        tasks=tasks,
        metrics={task: entries[0].scores.tasks[task].metric for task in tasks},
        reference=chosen.name if chosen else None,
        rows=tuple(_row(i, entry, chosen, tasks) for i, entry in enumerate(ranked, 1)),
        left_out=left_out,
        pooled_as=pooled_words(
            {task: entries[0].scores.tasks[task] for task in tasks}, entries[0].scores.groups
        ),
    )


def _check(entries: Sequence[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.kind not in KINDS:
            raise EvaluationError(
                f"{entry.name} is of kind {entry.kind!r}; allowed: {', '.join(KINDS)}"
            )
        if entry.name in seen:
            raise EvaluationError(f"two models of the leaderboard are called {entry.name!r}")
        seen.add(entry.name)
        if entry.scores.part != entries[0].scores.part:
            raise EvaluationError(
                f"{entries[0].name} has scores of the {entries[0].scores.part} part and "
                f"{entry.name} of the {entry.scores.part} part; compare one part at a time"
            )


def _shared_tasks(entries: Sequence[Entry]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    everything = list(dict.fromkeys(task for entry in entries for task in entry.scores.tasks))
    shared = tuple(t for t in everything if all(t in entry.scores.tasks for entry in entries))
    if not shared:
        raise EvaluationError(
            "no task was scored for every model; scored: "
            + "; ".join(f"{e.name}: {', '.join(e.scores.tasks) or 'nothing'}" for e in entries)
        )
    return shared, tuple(task for task in everything if task not in shared)


def _reference(ranked: Sequence[Entry], wanted: str | None) -> Entry | None:
    if wanted is not None:
        for entry in ranked:
            if entry.name == wanted:
                return entry
        raise EvaluationError(
            f"no model is called {wanted!r}; there are: {', '.join(e.name for e in ranked)}"
        )
    for kind in ("source", "base"):
        for entry in ranked:
            if entry.kind == kind:
                return entry
    return None


def _row(rank: int, entry: Entry, reference: Entry | None, tasks: tuple[str, ...]) -> Row:
    pooled = pooled_score(entry.scores, tasks, confidence=CONFIDENCE)
    difference = None
    if reference is not None and entry.name != reference.name:
        difference = compare(entry.scores, reference.scores, tasks, confidence=CONFIDENCE)
    return Row(
        rank=rank,
        name=entry.name,
        kind=entry.kind,
        n=pooled.n,
        pooled=pooled.value,
        stderr=pooled.stderr,
        low=pooled.low,
        high=pooled.high,
        tasks={t: task_estimate(entry.scores, t, confidence=CONFIDENCE) for t in tasks},
        difference=difference,
        origin=entry.origin,
        groups={
            name: pooled_score(entry.scores, rule.tasks, confidence=CONFIDENCE).estimate
            for name, rule in entry.scores.groups.items()
            if set(rule.tasks) <= set(tasks)
        },
    )


def _plain_score(score: Estimate) -> dict[str, float | None]:
    low, high = score.interval or (None, None)
    return {"value": score.value, "stderr": score.stderr, "low": low, "high": high}


def _plain(difference: Comparison | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    keys = ("confidence", "p_value", "test", "wins", "losses", "n", "units")
    return {
        "value": difference.difference,
        "low": _finite(difference.low),
        "high": _finite(difference.high),
        **{key: getattr(difference, key) for key in keys},
    }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def leaderboard_of(merges: Mapping[str, Scores], parents: Mapping[str, Scores]) -> Leaderboard:
    """Merges among their parents, each compared with the best parent."""
    entries = [
        Entry(parent, "base" if parent == "base" else "source", scores)
        for parent, scores in parents.items()
    ]
    return make_leaderboard([*entries, *(Entry(name, "merge", s) for name, s in merges.items())])
