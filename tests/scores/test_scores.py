"""One number for a model: pooled over items, and turned so that larger is better for choosing."""

from __future__ import annotations

import math

import pytest

from mergeops.errors import EvaluationError
from mergeops.scores import ItemResult, Scores, TaskScore


def task(name: str, values: list[float], *, higher_is_better: bool = True) -> TaskScore:
    items = tuple(ItemResult(i, f"{name}{i}", "p", "t", v) for i, v in enumerate(values))
    mean = sum(values) / len(values)
    return TaskScore(name, "m", mean, None, items, "1", "digest", higher_is_better)


def scores(*tasks: TaskScore) -> Scores:
    return Scores("w", "dev", {t.task: t for t in tasks}, {})


def test_pooled_is_the_mean_over_items_not_over_tasks() -> None:
    assert scores(task("a", [1.0]), task("b", [0.0, 0.0, 1.0])).pooled == 0.5


def test_where_lower_is_better_the_merit_is_the_negated_mean() -> None:
    perplexity = scores(task("a", [3.0, 5.0], higher_is_better=False))
    assert (perplexity.pooled, perplexity.merit) == (4.0, -4.0)
    accuracy = scores(task("a", [0.0, 1.0]))
    assert accuracy.merit == accuracy.pooled == 0.5


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_worse_than_any_that_is(
    value: float, higher_is_better: bool
) -> None:
    assert scores(task("a", [value, 1.0], higher_is_better=higher_is_better)).merit == -math.inf


def test_tasks_of_both_directions_give_no_merit() -> None:
    mixed = scores(task("a", [1.0]), task("b", [2.0], higher_is_better=False))
    with pytest.raises(EvaluationError, match="of a higher is better, of b lower"):
        _ = mixed.merit
