"""What lm-eval keeps of an item becomes a value and a weight whose ratio of sums is its number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lm_eval.api import metrics as lm_eval_metrics
from lm_eval.api.registry import AGGREGATION_REGISTRY

from mergeops.evaluate.metric_kinds import kind_of

ITEMS: dict[str, list[Any]] = {
    "mean": [True, 0, 0.25, np.float32(0.5)],
    "brier_score": [(1, np.array([0.2, 0.8])), (0, np.array([0.5, 0.5]))],
    "perplexity": [-1.0, -3.0, -0.5],
    "weighted_perplexity": [(-10.0, 4), (-3.0, 1), (0.0, 0)],
    "bits_per_byte": [(-10.0, 40), (-3.0, 1), (0.0, 0)],
}


@pytest.mark.parametrize("name", ITEMS)
def test_the_ratio_of_the_sums_is_lm_evals_number_also_with_an_empty_text(name: str) -> None:
    aggregation = AGGREGATION_REGISTRY[name]
    kind = kind_of(aggregation)
    contributions = [kind.contribution(item) for item in ITEMS[name]]
    sums = np.array(contributions).sum(axis=0)
    ratio = sums[0] / sums[1]
    assert (np.exp(ratio) if kind.by_log else ratio) == pytest.approx(aggregation(ITEMS[name]))


def test_every_other_aggregation_of_lm_eval_is_of_the_whole_corpus() -> None:
    others = {name for name in AGGREGATION_REGISTRY if name not in ITEMS}
    assert others >= {"f1", "bleu", "chrf", "ter", "median", "matthews_corrcoef", "nanmean"}
    assert {kind_of(AGGREGATION_REGISTRY[name]).kind for name in others} == {"corpus"}


def test_a_function_of_a_tasks_own_is_of_the_corpus_whatever_its_name() -> None:
    def mean(items: list[float]) -> float:
        return max(items)

    assert kind_of(mean).kind == "corpus"
    assert kind_of(lm_eval_metrics.mean).kind == "mean"


@pytest.mark.parametrize("value", ["text", None, (1, 2), float("nan"), float("inf")])
def test_what_is_no_finite_number_is_no_value_of_a_mean(value: Any) -> None:
    assert kind_of(lm_eval_metrics.mean).contribution(value) is None
