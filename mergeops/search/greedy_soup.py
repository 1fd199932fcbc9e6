"""Greedy soup: add models in order of their own score, keep each that does not lower the soup.

Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, recipe 1. The result is never worse than the
best single model on the part that it was chosen on (dev), and it starts as that model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.errors import ConfigError
from mergeops.methods import get
from mergeops.pipeline import run
from mergeops.recipe import MethodSpec, Recipe
from mergeops.search.strategies import SearchResult, dev_columns, strategy
from mergeops.tools import Tools
from mergeops.tracking import SearchRun, Trial


@dataclass(frozen=True)
class GreedySoupParameters:
    """Parameters of ``greedy_soup``: none."""

    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Not used; conf/search/greedy_soup.yaml and recipes in MLflow have it."""


@dataclass(frozen=True)
class Step:
    """One attempt to add a source."""

    added: str
    soup: tuple[str, ...]
    """The soup that was tried, in the order of adding."""
    score: float
    kept: bool


def choose(
    single_scores: Mapping[str, float], score_soup: Callable[[tuple[str, ...]], float]
) -> tuple[tuple[str, ...], list[Step]]:
    """The algorithm, free of models.

    Args:
        single_scores: each source's own score; higher is better. Equal scores keep their order.
        score_soup: score of the uniform soup of two or more sources. One that is not finite is
            never kept; -inf stands for it.

    Returns:
        The sources of the soup, in the order of adding, and every step.
    """
    ranked = sorted(single_scores, key=lambda name: -single_scores[name])
    soup: tuple[str, ...] = (ranked[0],)
    best = single_scores[ranked[0]]
    steps = [Step(ranked[0], soup, best, True)]
    for name in ranked[1:]:
        tried = (*soup, name)
        score = score_soup(tried)
        kept = math.isfinite(score) and score >= best
        steps.append(Step(name, tried, score, kept))
        if kept:
            soup, best = tried, score
    return soup, steps


@strategy("greedy_soup", trials=lambda recipe, _: max(len(recipe.sources) - 1, 0))
def search(
    recipe: Recipe, parameters: GreedySoupParameters, tools: Tools, log: SearchRun
) -> SearchResult:
    """Run the greedy soup over the recipe's sources; each soup tried is a nested trial.

    Raises:
        ConfigError: fewer than two sources, or no tasks to score on.
    """
    if len(recipe.sources) < 2:
        raise ConfigError(
            f"greedy_soup needs at least two sources; the recipe has {len(recipe.sources)}"
        )
    parents = tools.score_parents(recipe)
    trials: dict[tuple[str, ...], Trial] = {}

    def score_soup(names: tuple[str, ...]) -> float:
        trial = run(soup_recipe(recipe, names), tools, search=log)
        trials[names] = trial
        return trial.merit

    singles = {name: parents[name].merit for name in recipe.sources}
    soup, steps = choose(singles, score_soup)
    rows = [
        {
            "added": s.added,
            "size": len(s.soup),
            **dev_columns(trials[s.soup].scores if len(s.soup) > 1 else parents[s.added]),
            "kept": s.kept,
        }
        for s in steps
    ]
    best_source = soup[0] if len(soup) == 1 else None
    return SearchResult(trials.get(soup), best_source, list(trials.values()), rows)


def soup_recipe(recipe: Recipe, names: tuple[str, ...]) -> Recipe:
    """The uniform soup of the named sources, as a recipe of its own."""
    return dataclasses.replace(
        recipe,
        name=f"soup of {len(names)} (+{names[-1]})",
        method=MethodSpec("linear", get("linear").parameters()),
        # Recipe order, so that the same set of sources is the same plan however it was reached.
        sources={
            name: dataclasses.replace(spec, parameters={})
            for name, spec in recipe.sources.items()
            if name in names
        },
        rules=(),
    )
