"""The interval of one model's mean score: Wilson's for items of 0 and 1, else Student's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mergeops.errors import EvaluationError
from mergeops.evaluate import Scores
from mergeops.evaluate.paired import cluster_labels, compare_pairs


@dataclass(frozen=True)
class Mean:
    """A mean over items with its two-sided interval."""

    n: int
    """Items."""
    mean: float
    low: float
    high: float
    method: str
    """Wilson, t, clustered t, or exact sign where the values do not vary."""

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


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
    # Half a point off, so that values of 0 and 1 are not taken for pairs of answers.
    most = max(1.0, *map(abs, values))
    reach = (-0.5 if min(values) >= 0 else -most - 0.5), most - 0.5
    pairs = [(v, 0.5) for v in values]
    found = compare_pairs(pairs, clusters=labels, confidence=confidence, reach=reach)
    mean = math.fsum(values) / len(values)
    method = found.test.removeprefix("paired ")
    return Mean(len(values), mean, found.low + 0.5, found.high + 0.5, method)
