"""The leaderboard: parents and merges side by side, each with its error and its paired difference.

Two scores with overlapping intervals can still be clearly different: the models answered the same
items. So the column to read is the difference to the reference, whose interval is paired.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.errors import EvaluationError
from mergeops.evaluate import Scores, merit
from mergeops.evaluate.intervals import Estimate, mean_interval, task_estimate
from mergeops.evaluate.paired import Comparison, compare

if TYPE_CHECKING:
    from rich.console import RenderableType

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


@dataclass(frozen=True)
class Row:
    """A ranked model."""

    rank: int
    name: str
    kind: str
    n: int
    """Items of all tasks."""
    pooled: float
    """Mean over the items of all tasks."""
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

    @property
    def estimate(self) -> Estimate:
        """``pooled`` as it is shown."""
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return Estimate(self.pooled, (self.low, self.high) if known else None, self.stderr)


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

    @property
    def best(self) -> Row:
        """The first row."""
        return self.rows[0]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; what is not there, or not finite, is None."""
        return {
            "part": self.part,
            "tasks": list(self.tasks),
            "metrics": dict(self.metrics),
            "reference": self.reference,
            "left_out": list(self.left_out),
            "rows": [
                {
                    "rank": row.rank,
                    "name": row.name,
                    "kind": row.kind,
                    "n": row.n,
                    "pooled": row.pooled,
                    "stderr": row.stderr,
                    "low": _finite(row.low),
                    "high": _finite(row.high),
                    "tasks": {
                        task: {
                            "value": found.value,
                            "stderr": found.stderr,
                            "low": found.interval[0] if found.interval else None,
                            "high": found.interval[1] if found.interval else None,
                        }
                        for task, found in row.tasks.items()
                    },
                    "difference": _plain(row.difference),
                    **({"origin": dataclasses.asdict(row.origin)} if row.origin else {}),
                }
                for row in self.rows
            ],
        }

    def table(self, width: int | None = None) -> RenderableType:
        """For the terminal, ``width`` columns wide; None asks the terminal."""
        from mergeops.report.board_tables import terminal

        return terminal(self, width)

    def markdown(self) -> str:
        """As a Markdown table with a line about how to read it."""
        from mergeops.report.board_tables import markdown

        return markdown(self)


def leaderboard(entries: Sequence[Entry], reference: str | None = None) -> Leaderboard:
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
        entries, key=lambda e: -merit(_values(e.scores, tasks)[0], directions == {True})
    )
    chosen = _reference(ranked, reference)
    return Leaderboard(
        part=entries[0].scores.part,
        tasks=tasks,
        metrics={task: entries[0].scores.tasks[task].metric for task in tasks},
        reference=chosen.name if chosen else None,
        rows=tuple(_row(i, entry, chosen, tasks) for i, entry in enumerate(ranked, 1)),
        left_out=left_out,
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
    pooled, stderr, n = _values(entry.scores, tasks)
    found = mean_interval(entry.scores, tasks, confidence=CONFIDENCE)
    is_reference = reference is None or entry.name == reference.name
    return Row(
        rank=rank,
        name=entry.name,
        kind=entry.kind,
        n=n,
        pooled=pooled,
        stderr=stderr,
        low=found.low,
        high=found.high,
        tasks={t: task_estimate(entry.scores, t, confidence=CONFIDENCE) for t in tasks},
        difference=None
        if is_reference or reference is None
        else compare(entry.scores, reference.scores, tasks, confidence=CONFIDENCE),
        origin=entry.origin,
    )


def _values(scores: Scores, tasks: Iterable[str]) -> tuple[float, float | None, int]:
    """Mean over the items of all tasks, its standard error (tasks as strata), and their number."""
    total, variance, n = 0.0, 0.0, 0
    for task in tasks:
        values = [item.value for item in scores.tasks[task].items]
        mean = math.fsum(values) / len(values)
        total += math.fsum(values)
        n += len(values)
        if len(values) > 1:
            spread = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
            variance += len(values) * spread
        else:
            variance = math.inf
    return total / n, math.sqrt(variance) / n if math.isfinite(variance) else None, n


def _plain(difference: Comparison | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {
        "value": difference.difference,
        "low": _finite(difference.low),
        "high": _finite(difference.high),
        "confidence": difference.confidence,
        "p_value": difference.p_value,
        "test": difference.test,
        "wins": difference.wins,
        "losses": difference.losses,
        "n": difference.n,
        "units": difference.units,
    }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
