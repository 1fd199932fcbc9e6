"""Which of several trials is the best."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mergeops import pipeline
from mergeops.errors import EvaluationError
from mergeops.pipeline import best_of
from mergeops.recipe.recipe import Recipe
from mergeops.scores import ItemResult, Scores, TaskScore
from mergeops.search import grid
from mergeops.tracking import Trial
from mergeops.tracking.searches import SearchRun


def trial(name: str, value: float | None, *, higher_is_better: bool = True) -> Trial:
    scores = None
    if value is not None:
        items = (ItemResult(0, "d", "p", "t", value),)
        task = TaskScore("a", "m", value, None, items, "1", "x", higher_is_better)
        scores = Scores("0" * 64, "dev", {"a": task}, {})
    return Trial(
        name=name,
        plan_digest="0" * 64,
        run_id="",
        checkpoint=Path(name),
        registered="",
        scores=scores,
        parents={},
        leaderboard=None,
    )


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([math.nan, 0.5, 0.7], "2"),
        ([0.5, math.nan, 0.5], "0"),
        ([None, math.nan, -1.0], "2"),
        ([math.inf, 0.1], "1"),
    ],
)
def test_the_best_trial_is_the_first_of_the_highest_finite_scores(
    values: list[float | None], best: str
) -> None:
    found = best_of([trial(str(i), value) for i, value in enumerate(values)])
    assert found is not None and found.name == best


def test_where_lower_is_better_the_lowest_is_the_best() -> None:
    found = best_of([trial(str(v), v, higher_is_better=False) for v in (math.nan, 3.0, 2.0)])
    assert found is not None and found.name == "2.0"


def test_without_a_finite_score_there_is_no_best() -> None:
    assert best_of([trial("a", math.nan), trial("b", None)]) is None
    assert best_of([]) is None
    assert trial("a", math.nan).to_dict()["dev_score"] is None


def test_a_grid_takes_the_best_finite_point_and_refuses_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = Recipe.from_dict(
        {
            "method": {"name": "ties"},
            "base": "/base",
            "sources": {"a": {"uri": "/a"}},
            "search": {"strategy": "grid", "grid": {"method.density": [0.1, 0.5]}},
        }
    )
    results = {0.1: math.nan, 0.5: 0.25}

    def run(point: Recipe, *args: object, **facts: object) -> Trial:
        density = point.to_dict()["method"]["density"]
        return trial(str(density), results[density])

    monkeypatch.setattr(grid, "run", run)
    tools = object.__new__(pipeline.Tools)
    tools.executor = recipe.executor
    parameters = recipe.search.read(grid.GridParameters)
    found = grid.search(recipe, parameters, tools, object.__new__(SearchRun))
    assert found.best is not None and found.best.name == "0.5"
    assert [row["dev"] for row in found.rows] == [None, 0.25]
    results[0.5] = math.nan
    with pytest.raises(EvaluationError, match="none of the grid's 2 merges has a finite score"):
        grid.search(recipe, parameters, tools, object.__new__(SearchRun))
