"""Many candidates against one reference on the same items: intervals that hold for all at once.

The best of many scores is too good by choice alone. The max-T bootstrap (Westfall and Young 1993;
Romano and Wolf 2005, https://doi.org/10.1198/016214504000000539) draws the items again, the same
ones for every candidate, and looks at the largest studentised deviation: its quantile widens all
intervals by what the choice can do. Candidates that answer alike cost little, which Bonferroni
does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.evaluate import Scores
from mergeops.evaluate.paired import cluster_labels, constant_interval, pair, sign_p

_BATCH = 250


@dataclass(frozen=True)
class Simultaneous:
    """One candidate of many."""

    difference: float
    """Mean of candidate minus reference over the items; positive means better."""
    low: float
    high: float
    """Two-sided; all candidates' intervals hold together with ``confidence``."""
    p_value: float
    """One-sided, adjusted: the chance that the best of as many candidates, none of them better
    than the reference, looks as good."""
    confidence: float
    candidates: int


def simultaneous(
    candidates: Mapping[str, Scores],
    reference: Scores,
    tasks: Iterable[str] | None = None,
    *,
    confidence: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> dict[str, Simultaneous]:
    """Compare every candidate with the reference on the items of all ``tasks`` together.

    Clusters are drawn whole. Drawing says nothing of a candidate that differs from the reference
    by the same everywhere, or nowhere: it gets ``paired.constant_interval`` and a sign test, both
    by Bonferroni's rule.

    Args:
        draws: bootstrap samples.
        seed: of the draws; the same scores give the same intervals.

    Raises:
        EvaluationError: as ``paired.pair``.
    """
    import numpy as np

    if not candidates:
        return {}
    chosen = tuple(reference.tasks if tasks is None else tasks)
    differences = np.array(
        [
            [a - b for pairs in pair(scores, reference, chosen).values() for a, b in pairs]
            for scores in candidates.values()
        ]
    )
    sums, sizes = _by_cluster(differences, cluster_labels(reference, chosen))
    n, units = differences.shape[1], len(sizes)
    means = differences.mean(axis=1)
    residuals = sums - means[:, None] * sizes
    factor = units / (units - 1) if units > 1 else np.inf
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(factor * (residuals**2).sum(axis=1)) / n
    moving = errors > 1e-12 * abs(differences).max(axis=1)
    largest, largest_absolute = np.zeros(draws), np.zeros(draws)
    generator = np.random.default_rng(seed)
    if moving.any() and units > 1:
        for start in range(0, draws, _BATCH):
            stop = min(start + _BATCH, draws)
            counts = generator.multinomial(units, np.full(units, 1 / units), size=stop - start)
            again = counts @ sums[moving].T / (counts @ sizes)[:, None]
            t = (again - means[moving]) / errors[moving]
            largest[start:stop] = t.max(axis=1)
            largest_absolute[start:stop] = abs(t).max(axis=1)
    critical = float(np.quantile(largest_absolute, confidence))
    count, found = len(candidates), {}
    for i, name in enumerate(candidates):
        mean, error = float(means[i]), float(errors[i])
        if moving[i]:
            low, high = mean - critical * error, mean + critical * error
            p_value = (1 + int((largest >= mean / error).sum())) / (1 + draws)
        else:
            low, high = constant_interval(mean, units, 1 - (1 - confidence) / count)
            p_value = min(1.0, count * sign_p(mean, units))
        found[name] = Simultaneous(mean, low, high, p_value, confidence, count)
    return found


def _by_cluster(differences: Any, labels: list[str] | None) -> tuple[Any, Any]:
    """Sums of the differences over each cluster, ``[m, clusters]``, and the clusters' sizes."""
    import numpy as np

    if labels is None:
        return differences, np.ones(differences.shape[1])
    _, index = np.unique(labels, return_inverse=True)
    sizes = np.bincount(index).astype(float)
    sums = np.array([np.bincount(index, weights=row) for row in differences])
    return sums, sizes
