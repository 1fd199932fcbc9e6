"""Grid: every combination of the listed values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from mergeops.errors import ConfigError, EvaluationError
from mergeops.pipeline import best_of, run
from mergeops.recipe import Recipe
from mergeops.search import Found, dev_columns, strategy
from mergeops.tools import Tools
from mergeops.tracking.search_run import SearchRun


@strategy("grid")
def search(recipe: Recipe, tools: Tools, log: SearchRun) -> Found:
    """Run every combination of ``recipe.search.grid``; each one is a nested trial.

    Raises:
        ConfigError: the grid is empty, or a key in it is unknown.
        EvaluationError: no merge has a finite score.
    """
    points = combinations(recipe.search.grid)
    # All recipes are checked before the first one runs.
    recipes = [with_values(recipe, point) for point in points]
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
    return Found(best, None, trials, rows)


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


def with_values(recipe: Recipe, point: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced.

    Raises:
        ConfigError: a key or a value that the schema refuses.
    """
    raw = recipe.to_dict()
    for key, value in point.items():
        *parents, last = key.split(".")
        node = raw
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"search.grid has {key}, but {part} holds no keys of its own")
        node[last] = value
    changes = ", ".join(f"{key.split('.')[-1]}={value}" for key, value in point.items())
    raw["name"] = f"{recipe.name or raw['method']['name']} {changes}"
    return Recipe.from_dict(raw)
