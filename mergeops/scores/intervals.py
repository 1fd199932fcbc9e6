"""The interval of one model's score: of a mean Wilson's for items of 0 and 1, else Student's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from mergeops.errors import EvaluationError
from mergeops.scores.paired import cluster_labels, compare_pairs
from mergeops.scores.scores import Scores


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
class Mean:
    """A mean over items with its two-sided interval."""

    n: int
    """Items."""
    mean: float
    low: float
    high: float
    method: str
    """Wilson, t, clustered t, exact sign where the values do not vary, or none where one of them
    is not finite."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends; None where the items tell none, e.g. one item or one cluster alone."""
        is_finite = math.isfinite(self.low) and math.isfinite(self.high)
        return (self.low, self.high) if is_finite else None

    def __str__(self) -> str:
        return str(Estimate(self.mean, self.interval))


def estimate(scores: Scores) -> Estimate:
    """The mean over the items of all tasks (``scores.pooled``) with its 95 % interval."""
    items = any(task.items for task in scores.tasks.values())
    return Estimate(scores.pooled, mean_interval(scores).interval if items else None)


def task_estimate(scores: Scores, task: str, *, confidence: float = 0.95) -> Estimate:
    """A task's score with its interval.

    Where the score is the mean over its items, the interval is that of the mean; where the metric
    aggregates otherwise, a normal one if there is a standard error, else none.
    """
    score = scores.tasks[task]
    value, stderr = score.value, score.stderr
    if score.items:
        mean = mean_interval(scores, (task,), confidence=confidence)
        if math.isclose(mean.mean, value, rel_tol=1e-9, abs_tol=1e-12):
            return Estimate(value, mean.interval, stderr)
    if stderr is None or not math.isfinite(stderr) or not math.isfinite(value):
        return Estimate(value, None, stderr)
    # Wald interval: value +- z(1 - alpha / 2) standard errors.
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * stderr
    return Estimate(value, (value - half, value + half), stderr)


def mean_interval(
    scores: Scores, tasks: Iterable[str] | None = None, *, confidence: float = 0.95
) -> Mean:
    """The mean over the items of all ``tasks``.

    Raises:
        EvaluationError: there are no items.
    """
    chosen = tuple(scores.tasks if tasks is None else tasks)
    values = [item.value for task in chosen for item in scores.tasks[task].items]
    labels = cluster_labels(scores, chosen)
    if not values:
        raise EvaluationError("there are no items to take a mean over")
    n = len(values)
    if labels is None and all(value in (0.0, 1.0) for value in values):
        from scipy.stats import binomtest

        # Score interval of a proportion (Wilson 1927, https://doi.org/10.2307/2276774).
        right = int(sum(values))
        ends = binomtest(right, n).proportion_ci(confidence, method="wilson")
        return Mean(
            n=n, mean=right / n, low=float(ends.low), high=float(ends.high), method="Wilson"
        )
    if not all(map(math.isfinite, values)):
        return Mean(n=n, mean=math.nan, low=-math.inf, high=math.inf, method="none")
    # Student's t interval of the mean, by clusters where there are some: the paired one against a
    # constant. The constant is half a point, since values of 0 and 1 against 0 or 1 would be
    # taken for pairs of answers; it is added again below.
    most = max(1.0, *map(abs, values))
    reach = (-0.5 if min(values) >= 0 else -most - 0.5), most - 0.5
    pairs = [(v, 0.5) for v in values]
    shifted = compare_pairs(pairs, clusters=labels, confidence=confidence, reach=reach)
    return Mean(
        n=n,
        mean=math.fsum(values) / n,
        low=shifted.low + 0.5,
        high=shifted.high + 0.5,
        method=shifted.test.removeprefix("paired "),
    )
