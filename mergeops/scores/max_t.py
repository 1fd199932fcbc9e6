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

import numpy as np

from mergeops.scores.paired import constant_interval, difference_of, sign_p
from mergeops.scores.pairing import pair
from mergeops.scores.pooling import cluster_labels, sums_by_label
from mergeops.scores.scores import Scores

# Bootstrap samples drawn at once, which bounds the memory.
_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Simultaneous:
    """One candidate of many."""

    difference: float
    """Candidate minus reference, as ``paired.compare`` has it; positive means better."""
    low: float
    high: float
    """Two-sided; all candidates' intervals hold together with ``confidence``."""
    p_value: float
    """One-sided, adjusted: the chance that the best of as many candidates, none of them better
    than the reference, looks as good."""
    confidence: float
    candidates: int


def simultaneous_estimate(
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
        EvaluationError: as ``pairing.pair``.
    """
    if not candidates:
        return {}
    chosen = tuple(reference.tasks if tasks is None else tasks)
    for scores in candidates.values():
        pair(scores, reference, chosen)
    changes = [difference_of(scores, reference, chosen) for scores in candidates.values()]
    labels = cluster_labels({task: reference.tasks[task] for task in chosen})
    means = np.array([change.value for change in changes])
    # D[k, g] and n_g: how far cluster g moves the difference of candidate k, and its share in it.
    effects = sums_by_label(np.array([change.effects for change in changes]), labels)
    sizes = sums_by_label(changes[0].shares, labels)
    units = len(sizes)
    # R[k, b]: how far drawing items again moves it where only all of them have a number.
    resampled = np.array([change.resampled for change in changes])
    draws = resampled.shape[1] or draws
    # Cluster-robust standard error of each difference, as in ``paired.t_test``:
    # se_k^2 = G / (G - 1) * sum_g D[k, g]^2, and what drawing again adds.
    correction = units / (units - 1) if units > 1 else np.inf
    with np.errstate(invalid="ignore"):
        squares = correction * (effects**2).sum(axis=1)
    if resampled.size:
        squares = squares + (resampled**2).mean(axis=1)
    errors = np.sqrt(squares)
    # Candidates whose differences vary by more than rounding; the others have no t statistic.
    largest_effect = abs(effects).max(axis=1) if units else np.zeros(len(changes))
    varies = errors > 1e-12 * np.maximum(abs(means), largest_effect * units)
    # max_k t*_k and max_k |t*_k| of each bootstrap sample.
    largest, largest_absolute = np.zeros(draws), np.zeros(draws)
    generator = np.random.default_rng(seed)
    if varies.any() and units > 1:
        for start in range(0, draws, _BATCH):
            stop = min(start + _BATCH, draws)
            # How often each of the G clusters is drawn, of G draws with replacement. All candidates
            # see the same draws, which keeps what their scores have in common.
            counts = generator.multinomial(units, np.full(units, 1 / units), size=stop - start)
            # How far the draw moves the difference from the observed one, which is the truth of the
            # bootstrap world: a ratio, since clusters of unequal size change the number of items.
            moved = counts @ effects[varies].T / (counts @ sizes)[:, None]
            if resampled.size:
                moved = moved + resampled[varies, start:stop].T
            # Studentised: t*_k = (mean*_k - mean_k) / se_k.
            t = moved / errors[varies]
            largest[start:stop] = t.max(axis=1)
            largest_absolute[start:stop] = abs(t).max(axis=1)
    # c: single-step critical value, for the band mean_k +- c se_k that holds for all k at once.
    critical = float(np.quantile(largest_absolute, confidence))
    count, estimates = len(candidates), {}
    for k, name in enumerate(candidates):
        mean, error = float(means[k]), float(errors[k])
        if varies[k]:
            low, high = mean - critical * error, mean + critical * error
            # Adjusted p: the share of samples whose largest t reaches the observed mean_k / se_k,
            # the observed one counted among them, so that p is never 0.
            p_value = (1 + int((largest >= mean / error).sum())) / (1 + draws)
        else:
            # Bonferroni: one in ``count`` of the error for each candidate.
            low, high = constant_interval(mean, units, 1 - (1 - confidence) / count)
            p_value = min(1.0, count * sign_p(mean, units))
        estimates[name] = Simultaneous(
            difference=mean,
            low=low,
            high=high,
            p_value=p_value,
            confidence=confidence,
            candidates=count,
        )
    return estimates
