"""Grid: every combination of the listed values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.errors import ConfigError, EvaluationError
from mergeops.pipeline import best_of, run
from mergeops.recipe import Recipe
from mergeops.search.strategies import SearchResult, dev_columns, strategy, with_values
from mergeops.tools import Tools
from mergeops.tracking import SearchRun


@dataclass(frozen=True)
class GridParameters:
    """Parameters of ``grid``."""

    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Override key -> values, e.g. {method.density: [0.2, 0.5]}."""


@strategy("grid", trials=lambda _, parameters: len(combinations(parameters.grid)))
def search(
    recipe: Recipe, parameters: GridParameters, tools: Tools, log: SearchRun
) -> SearchResult:
    """Run every combination of the grid; each one is a nested trial.

    Raises:
        ConfigError: the grid is empty, or a key in it is unknown.
        EvaluationError: no merge has a finite score.
    """
    points = combinations(parameters.grid)
    # All recipes are checked before the first one runs.
    recipes = [with_values(recipe, point) for point in points]
    tools.do_ahead(recipes)
    trials = [run(point, tools, search=log) for point in recipes]
    best = best_of(trials)
    if best is None:
        raise EvaluationError(
            f"none of the grid's {len(trials)} merges has a finite score on dev, so none is the "
            "best; their runs in MLflow are kept, with what each model answered below samples/"
        )
    rows = [
        {**point, **dev_columns(trial.scores)} for point, trial in zip(points, trials, strict=True)
    ]
    return SearchResult(best, None, trials, rows)


def combinations(grid: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """All points of the grid, the last key varying fastest.

    Raises:
        ConfigError: no key, or a key without values.
    """
    if not grid or not all(grid.values()):
        raise ConfigError(
            f"search.grid is {dict(grid)}; it takes KEY: [VALUES], e.g. "
            "search.grid='{method.density: [0.2, 0.5]}'"
        )
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
