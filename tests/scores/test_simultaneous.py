"""Intervals that hold for all candidates at once, against formulas and chance."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from mergeops.errors import EvaluationError
from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.scores.max_t import simultaneous_estimate
from mergeops.scores.paired import compare


def scores(values: Any, clusters: list[str] | None = None) -> Scores:
    labels = clusters or [""] * len(values)
    items = tuple(
        ItemResult(i, f"d{i}", f"p{i}", "t", float(v), label)
        for i, (v, label) in enumerate(zip(values, labels, strict=True))
    )
    mean = float(np.mean(values))
    return Scores("00", "dev", {"a": TaskScore("a", "acc", mean, None, items, "1", "x")}, {})


def noisy(m: int, n: int = 300, seed: int = 0) -> tuple[dict[str, Scores], Scores]:
    draw = np.random.default_rng(seed)
    return {str(i): scores(draw.normal(size=n)) for i in range(m)}, scores(np.zeros(n))


def test_one_candidate_alone_gets_the_interval_of_a_single_comparison() -> None:
    candidates, reference = noisy(1)
    one = simultaneous_estimate(candidates, reference)["0"]
    alone = compare(candidates["0"], reference)
    assert one.difference == pytest.approx(alone.difference)
    assert (one.low, one.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    assert one.p_value == pytest.approx(alone.p_value, abs=0.03)


def test_independent_candidates_get_about_sidaks_interval() -> None:
    candidates, reference = noisy(16)
    one = simultaneous_estimate(candidates, reference, draws=8000)["3"]
    values = [item.value for item in candidates["3"].tasks["a"].items]
    error = np.std(values, ddof=1) / np.sqrt(300)
    sidak = NormalDist().inv_cdf((1 + 0.95 ** (1 / 16)) / 2)
    assert (one.high - one.low) / 2 / error == pytest.approx(sidak, rel=0.04)


def test_candidates_that_answer_alike_cost_nothing() -> None:
    candidates, reference = noisy(1)
    many = simultaneous_estimate({str(i): candidates["0"] for i in range(64)}, reference)["9"]
    one = simultaneous_estimate(candidates, reference)["0"]
    assert (many.low, many.high) == pytest.approx((one.low, one.high))
    assert many.p_value == pytest.approx(one.p_value, abs=1e-3)
    assert many.candidates == 64


def test_the_best_of_many_equals_is_not_called_better_too_often() -> None:
    wrong = 0
    for seed in range(200):
        candidates, reference = noisy(8, n=100, seed=seed)
        found = simultaneous_estimate(candidates, reference, draws=400)
        wrong += min(one.p_value for one in found.values()) <= 0.05
    # Three standard errors of 200 draws are 4.6 points.
    assert wrong / 200 <= 0.05 + 0.046


def test_a_candidate_that_never_differs_gets_the_bound_for_no_events() -> None:
    candidates, reference = noisy(2)
    found = simultaneous_estimate({**candidates, "same": reference}, reference)["same"]
    q = 1 - (0.05 / 3 / 2) ** (1 / 300)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert (found.low, found.high) == pytest.approx((-q, q))


def test_a_few_items_or_clusters_that_all_win_are_not_certain() -> None:
    won = simultaneous_estimate(
        {"a": scores([1.0] * 4), "b": scores([0.0] * 4)}, scores([0.0] * 4)
    )["a"]
    # Two candidates, each with an exact sign test over four items.
    assert won.p_value == 2 / 16
    assert won.low == pytest.approx(1 - 2 * (1 - 0.0125 ** (1 / 4)))
    labels = ["x"] * 4
    one = simultaneous_estimate({"a": scores([1.0] * 4, labels)}, scores([0.0] * 4, labels))["a"]
    assert (one.low, one.high, one.p_value) == (-np.inf, np.inf, 1.0)


def test_clusters_are_drawn_whole() -> None:
    draw = np.random.default_rng(1)
    values = draw.normal(size=50)
    single = simultaneous_estimate({"a": scores(values)}, scores(np.zeros(50)))["a"]
    labels = [str(i // 4) for i in range(200)]
    copied = simultaneous_estimate(
        {"a": scores(np.repeat(values, 4), labels)}, scores(np.zeros(200), labels)
    )["a"]
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high), abs=0.02)


def test_the_same_scores_give_the_same_intervals() -> None:
    candidates, reference = noisy(3)
    assert simultaneous_estimate(candidates, reference) == simultaneous_estimate(
        candidates, reference
    )


def test_no_candidates_are_no_intervals_and_other_items_an_error() -> None:
    candidates, reference = noisy(1)
    assert simultaneous_estimate({}, reference) == {}
    with pytest.raises(EvaluationError, match="300 items cannot be paired with 200"):
        simultaneous_estimate(candidates, scores(np.zeros(200)))
