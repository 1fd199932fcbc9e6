"""Search: many trials, one file a strategy; the best is chosen on the dev part only.

A strategy is a function ``(recipe, tools, log) -> Found``; adding a file to this package
that registers one with ``@strategy(NAME)`` adds it everywhere.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.errors import ConfigError
from mergeops.evaluate.intervals import estimate
from mergeops.progress import Progress

if TYPE_CHECKING:
    from mergeops.evaluate import Scores
    from mergeops.pipeline import Trial
    from mergeops.recipe import Recipe
    from mergeops.tools import Tools
    from mergeops.tracking.search_run import SearchRun

    Strategy = Callable[[Recipe, Tools, SearchRun], "Found"]


@dataclass(frozen=True)
class Found:
    """What a search ended with."""

    best: Trial | None
    """The best merge, or None where a single source was not beaten."""
    best_source: str | None
    """The single source that no merge beat, where that is the result."""
    trials: list[Trial]
    rows: list[dict[str, Any]]
    """One row a step, for the table and the search run's artifact."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for ``--json``."""
        return {
            "best": self.best.to_dict() if self.best else None,
            "best_source": self.best_source,
            "steps": self.rows,
            "trials": [trial.to_dict() for trial in self.trials],
        }


def dev_columns(scores: Scores | None) -> dict[str, Any]:
    """Of a step's row: the pooled dev score and its 95 % interval; None where there is none."""
    if scores is None or not math.isfinite(scores.pooled):
        return {"dev": None, "dev_interval": None}
    found = estimate(scores)
    return {"dev": found.value, "dev_interval": list(found.interval) if found.interval else None}


_STRATEGIES: dict[str, Strategy] = {}


def strategy(name: str) -> Callable[[Strategy], Strategy]:
    """Register a search strategy under a name."""

    def register(function: Strategy) -> Strategy:
        _STRATEGIES[name] = function
        return function

    return register


def names() -> list[str]:
    """All strategies."""
    _load()
    return sorted(_STRATEGIES)


def get(name: str) -> Strategy:
    """The strategy of that name.

    Raises:
        ConfigError: there is none.
    """
    _load()
    if name not in _STRATEGIES:
        raise ConfigError(f"search.strategy is {name!r}; allowed: {', '.join(names())}")
    return _STRATEGIES[name]


def run_search(recipe: Recipe, progress: Progress) -> Found:
    """Run the recipe's search strategy below one MLflow run; an interrupted one goes on.

    Raises:
        ConfigError: unknown strategy, no tasks to choose by, or what the strategy refuses.
    """
    from mergeops.pipeline import log_search_page
    from mergeops.tools import Tools

    chosen = get(recipe.search.strategy)
    if not recipe.evaluate.tasks:
        raise ConfigError(
            "a search chooses by scores, but evaluate.tasks is empty; name some tasks"
        )
    tools = Tools(recipe, progress)
    name = f"{recipe.search.strategy} over {len(recipe.sources)} sources"
    settings = dataclasses.asdict(recipe.search) | {"sources": ", ".join(recipe.sources)}
    with tools.tracking.search(name, recipe.sha256(), settings) as log:
        found = chosen(recipe, tools, log)
        log.log_json(found.rows, "steps.json")
        if found.best is not None and found.best.scores is not None:
            log.log_best(found.best.run_id, found.best.scores)
        log_search_page(log, found.trials)
    return found


def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
