"""The interval of one model's score: of a mean Wilson's for items of 0 and 1, else Student's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from mergeops.errors import EvaluationError
from mergeops.evaluate import Scores
from mergeops.evaluate.paired import cluster_labels, compare_pairs


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


@dataclass(frozen=True)
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
        both = (self.low, self.high)
        return both if all(math.isfinite(end) for end in both) else None

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
    found = scores.tasks[task]
    if found.items:
        mean = mean_interval(scores, (task,), confidence=confidence)
        if math.isclose(mean.mean, found.value, rel_tol=1e-9, abs_tol=1e-12):
            return Estimate(found.value, mean.interval, found.stderr)
    if found.stderr is None or not math.isfinite(found.stderr) or not math.isfinite(found.value):
        return Estimate(found.value, None, found.stderr)
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * found.stderr
    return Estimate(found.value, (found.value - reach, found.value + reach), found.stderr)


def mean_interval(
    scores: Scores, tasks: Iterable[str] | None = None, *, confidence: float = 0.95
) -> Mean:
    """The mean over the items of all ``tasks``.

    Wilson 1927, https://doi.org/10.2307/2276774, where every item is 0 or 1 and none share a
    cluster.

    Raises:
        EvaluationError: there are no items.
    """
    from scipy.stats import binomtest

    chosen = tuple(scores.tasks if tasks is None else tasks)
    values = [item.value for task in chosen for item in scores.tasks[task].items]
    labels = cluster_labels(scores, chosen)
    if not values:
        raise EvaluationError("there are no items to take a mean over")
    if labels is None and all(value in (0.0, 1.0) for value in values):
        right = int(sum(values))
        ends = binomtest(right, len(values)).proportion_ci(confidence, method="wilson")
        mean = right / len(values)
        return Mean(len(values), mean, float(ends.low), float(ends.high), "Wilson")
    if not all(map(math.isfinite, values)):
        return Mean(len(values), math.nan, -math.inf, math.inf, "none")
    # Half a point off, so that values of 0 and 1 are not taken for pairs of answers.
    most = max(1.0, *map(abs, values))
    reach = (-0.5 if min(values) >= 0 else -most - 0.5), most - 0.5
    pairs = [(v, 0.5) for v in values]
    found = compare_pairs(pairs, clusters=labels, confidence=confidence, reach=reach)
    mean = math.fsum(values) / len(values)
    method = found.test.removeprefix("paired ")
    return Mean(len(values), mean, found.low + 0.5, found.high + 0.5, method)
