"""Search: many trials, one file a strategy; the best is chosen on the dev part only.

A strategy is a function ``(recipe, parameters, tools, log) -> SearchResult``. A file of this
package that registers one with ``@strategy(NAME)`` adds it everywhere. So does a module that
another package names in its entry point group ``mergeops.strategies``.

Stands on: checkpoint, engine, errors, evaluate, executors, extraction, methods, pipeline, planning,
progress, promotion, recipe, schema, scores, store, tools, tracking, workshop.
"""

from mergeops.promotion import with_sources
from mergeops.search.beforehand import Forecast, forecast
from mergeops.search.strategies import (
    SearchResult,
    completed,
    describe,
    dev_columns,
    forecast_search,
    parameter_types,
    run_search,
    strategy,
    with_strategy,
    with_values,
)

__all__ = [
    "Forecast",
    "SearchResult",
    "completed",
    "describe",
    "dev_columns",
    "forecast",
    "forecast_search",
    "parameter_types",
    "run_search",
    "strategy",
    "with_sources",
    "with_strategy",
    "with_values",
]
