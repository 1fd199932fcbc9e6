"""Greedy soup (Wortsman et al. 2022, recipe 1), with scores made up by hand."""

from __future__ import annotations

import math

import pytest

from mergeops.search.greedy_soup import choose


def score_from(table: dict[str, float]):  # type: ignore[no-untyped-def]
    return lambda names: table["".join(sorted(names))]


def test_models_are_tried_in_order_of_their_own_score() -> None:
    tried = []

    def score(names: tuple[str, ...]) -> float:
        tried.append(names)
        return 0.0

    choose({"a": 0.2, "b": 0.9, "c": 0.5}, score)
    assert tried == [("b", "c"), ("b", "a")]


def test_a_model_that_lowers_the_soup_is_left_out_and_the_next_is_tried_without_it() -> None:
    soup, steps = choose({"a": 0.9, "b": 0.8, "c": 0.7}, score_from({"ab": 0.85, "ac": 0.95}))
    assert soup == ("a", "c")
    assert [(s.added, s.kept) for s in steps] == [("a", True), ("b", False), ("c", True)]


def test_a_model_that_leaves_the_score_equal_is_kept() -> None:
    soup, _ = choose({"a": 0.9, "b": 0.8}, score_from({"ab": 0.9}))
    assert soup == ("a", "b")


@pytest.mark.parametrize("broken", [math.nan, -math.inf, math.inf])
def test_a_soup_without_a_finite_score_is_never_kept(broken: float) -> None:
    soup, steps = choose({"a": 0.9, "b": -math.inf, "c": 0.7}, score_from({"ac": broken, "ab": 1}))
    assert soup == ("a", "b")
    assert [(s.added, s.kept) for s in steps] == [("a", True), ("c", False), ("b", True)]
    assert choose({"a": -math.inf, "b": -math.inf}, lambda names: -math.inf)[0] == ("a",)


@pytest.mark.parametrize("seed", range(20))
def test_the_soup_is_never_worse_than_the_best_single_model(seed: int) -> None:
    import random

    draw = random.Random(seed)
    singles = {name: draw.random() for name in "abcdef"}
    scores: dict[str, float] = {}

    def score(names: tuple[str, ...]) -> float:
        return scores.setdefault("".join(sorted(names)), draw.random())

    soup, _ = choose(singles, score)
    final = singles[soup[0]] if len(soup) == 1 else scores["".join(sorted(soup))]
    assert final >= max(singles.values())


def test_where_nothing_helps_the_soup_is_the_best_single_model() -> None:
    soup, steps = choose({"a": 0.9, "b": 0.8, "c": 0.7}, lambda names: 0.1)
    assert soup == ("a",)
    assert len(steps) == 3
