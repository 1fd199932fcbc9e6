"""What kind of number a metric is: that is decided by how lm-eval aggregates it, not by its name.

``f1`` is a mean in DROP, where each item has an F1 of its own, and a number of the whole corpus
where an item only gives a pair of gold and answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mergeops.scores import CORPUS, MEAN, UNITS

Aggregation = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class MetricKind:
    """How a metric's value comes from its items."""

    kind: str
    """``mean``, ``units`` or ``corpus``."""
    by_log: bool
    """Whether the value is the exponential of a ratio, as perplexities are."""
    contribution: Callable[[Any], tuple[float, float] | None]
    """What lm-eval keeps of an item -> value and weight of its ``ItemResult``, so that the value of
    all is the ratio of the sums; None where it is no number."""


def kind_of(aggregation: Aggregation) -> MetricKind:
    """The kind of a metric that lm-eval aggregates by this function."""
    from lm_eval.api import metrics

    kinds = [
        (metrics.mean, MetricKind(MEAN, False, _number)),
        (metrics.brier_score, MetricKind(MEAN, False, _brier)),
        (metrics.perplexity, MetricKind(UNITS, True, _nats)),
        (metrics.weighted_perplexity, MetricKind(UNITS, True, _nats_by_units)),
        (metrics.bits_per_byte, MetricKind(UNITS, False, _bits_by_units)),
    ]
    corpus = MetricKind(CORPUS, False, lambda _: (0.0, 1.0))
    return next((kind for function, kind in kinds if function is aggregation), corpus)


def aggregation_of(task: Any, metric: str) -> Aggregation:
    """lm-eval's function for a metric of a task; what it has none for is a mean to it."""
    from lm_eval.api.metrics import mean

    function: Aggregation = task.aggregation().get(metric, mean)
    return function


def unusable(metric: str, aggregation: Aggregation, *, own_results: bool) -> str:
    """Why lm-eval itself has no number of a metric; empty where it has.

    Args:
        own_results: whether the task counts with code of its own (``process_results``).
    """
    from lm_eval.api import metrics

    if aggregation is metrics.bypass_agg:
        return "lm-eval's bypass is no score, but keeps answers without one"
    if metric == "likelihood" and aggregation is metrics.mean and not own_results:
        return "lm-eval keeps gold and log-likelihoods of it, of which there is no mean"
    return ""


def _number(value: Any) -> tuple[float, float] | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return (number, 1.0) if math.isfinite(number) else None


def _brier(value: Any) -> tuple[float, float] | None:
    gold, probabilities = value
    # Sum over classes of (probability - 1 for the right one, 0 for the others)^2.
    squares = [(float(p) - (i == gold)) ** 2 for i, p in enumerate(probabilities)]
    return math.fsum(squares), 1.0


def _nats(log_likelihood: Any) -> tuple[float, float] | None:
    return -float(log_likelihood), 1.0


def _nats_by_units(value: Any) -> tuple[float, float] | None:
    log_likelihood, units = value
    return -float(log_likelihood), float(units)


def _bits_by_units(value: Any) -> tuple[float, float] | None:
    log_likelihood, units = value
    return -float(log_likelihood) / math.log(2), float(units)
