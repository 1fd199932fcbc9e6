"""The interval of one model's score: Wilson's for items of 0 and 1, else Student's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from mergeops.errors import EvaluationError
from mergeops.scores.paired import t_test
from mergeops.scores.pooling import (
    cluster_labels,
    is_mean_over_items,
    pool,
    pooled_value,
    shown,
    sums_by_label,
)
from mergeops.scores.proportions import wilson_interval
from mergeops.scores.scores import Scores
from mergeops.scores.task_score import UNKNOWN


@dataclass(frozen=True)
class Estimate:
    """A score as it is shown."""

    value: float
    interval: tuple[float, float] | None
    """Its two-sided interval; None where what is known of the items tells none."""
    stderr: float | None = None
    """Its standard error, where lm-eval or the items give one."""

    @property
    def value_text(self) -> str:
        """The score alone."""
        return f"{self.value:.3f}"

    @property
    def interval_text(self) -> str:
        """The interval alone; empty where there is none."""
        return "[{:.3f}, {:.3f}]".format(*self.interval) if self.interval else ""

    def __str__(self) -> str:
        return f"{self.value_text} {self.interval_text}".rstrip()


@dataclass(frozen=True, kw_only=True)
class PooledScore:
    """The number over some tasks, as it is shown, with its two-sided interval."""

    n: int
    """Items."""
    value: float
    stderr: float | None
    """Sampling error within each task; None where one item alone does not tell."""
    low: float
    high: float
    method: str
    """Wilson, t, clustered t, bootstrap, exact sign where the values do not vary, or none where
    one of them is not finite."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends; None where the items tell none, e.g. one item or one cluster alone."""
        is_finite = math.isfinite(self.low) and math.isfinite(self.high)
        return (self.low, self.high) if is_finite else None

    @property
    def estimate(self) -> Estimate:
        """As it is shown."""
        return Estimate(self.value, self.interval, self.stderr)

    def __str__(self) -> str:
        return str(self.estimate)


def estimate(scores: Scores) -> Estimate:
    """The number over all tasks (``scores.pooled``) with its 95 % interval."""
    items = any(task.items for task in scores.tasks.values())
    return Estimate(scores.pooled, pooled_score(scores).interval if items else None)


def task_estimate(scores: Scores, task: str, *, confidence: float = 0.95) -> Estimate:
    """A task's score with its interval.

    Where it is not known what the score is of its items, since an older mergeops logged it, the
    interval is a normal one if there is a standard error, else none.
    """
    score = scores.tasks[task]
    value, stderr = score.value, score.stderr
    if score.items and score.kind != UNKNOWN:
        pooled = pooled_score(scores, (task,), confidence=confidence)
        if math.isclose(pooled.value, value, rel_tol=1e-9, abs_tol=1e-12):
            return Estimate(value, pooled.interval, stderr)
    if stderr is None or not math.isfinite(stderr) or not math.isfinite(value):
        return Estimate(value, None, stderr)
    # Wald interval: value +- z(1 - alpha / 2) standard errors.
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * stderr
    return Estimate(value, (value - half, value + half), stderr)


def pooled_score(
    scores: Scores, tasks: Iterable[str] | None = None, *, confidence: float = 0.95
) -> PooledScore:
    """The number over all ``tasks``; clusters are counted.

    Raises:
        EvaluationError: there are no items; a score of an older mergeops, see ``pooling.pool``.
    """
    chosen = {task: scores.tasks[task] for task in (scores.tasks if tasks is None else tasks)}
    values = [item.value for task in chosen.values() for item in task.items]
    if not values:
        raise EvaluationError("there are no items to take a mean over")
    labels = cluster_labels(chosen)
    n, is_mean = len(values), is_mean_over_items(chosen, scores.groups)
    value = pooled_value(chosen, scores.groups)
    if not all(map(math.isfinite, values)):
        return PooledScore(
            n=n, value=value, stderr=None, low=-math.inf, high=math.inf, method="none"
        )
    pooled = pool(chosen, scores.groups)
    slope = value if pooled.by_log else 1.0
    stderr = slope * math.sqrt(pooled.variance) if math.isfinite(pooled.variance) else None
    if is_mean and len(set(labels)) == n and all(v in (0.0, 1.0) for v in values):
        low, high = wilson_interval(int(sum(values)), n, confidence)
        return PooledScore(n=n, value=value, stderr=stderr, low=low, high=high, method="Wilson")
    most = max(1.0, abs(pooled.value), *(map(abs, values) if is_mean else ()))
    method, low, high, _ = t_test(
        pooled.value,
        sums_by_label(pooled.effects, labels),
        confidence,
        (0.0 if min(values) >= 0 else -most, most),
        scale=most,
        shares=None if is_mean else sums_by_label(pooled.shares, labels),
        more_variance=float((pooled.resampled**2).mean()) if pooled.resampled.size else 0.0,
    )
    if pooled.resampled.size and method != "exact sign":
        method = "bootstrap"
    elif len(set(labels)) == n:
        method = method.removeprefix("clustered ")
    ends_shown = (shown(low, pooled.by_log), shown(high, pooled.by_log))
    return PooledScore(
        n=n, value=value, stderr=stderr, low=ends_shown[0], high=ends_shown[1], method=method
    )
