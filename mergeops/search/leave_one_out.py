"""Leave one out: the merge, and the merge without each of its sources.

It says what each source contributes, as ``mergeops controls`` does for a registered merge, but each
merge is a trial of its own, so that one without a source that hurts can be promoted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergeops.errors import ConfigError, EvaluationError
from mergeops.methods import get
from mergeops.pipeline import best_of, run
from mergeops.promotion import finding_of, gains_over, without_source
from mergeops.recipe import Recipe
from mergeops.scores import Scores
from mergeops.search.strategies import SearchResult, dev_columns, strategy
from mergeops.tools import Tools
from mergeops.tracking import SearchRun


@dataclass(frozen=True)
class LeaveOneOutParameters:
    """Parameters of ``leave_one_out``: none."""


@strategy("leave_one_out", trials=lambda recipe, _: len(recipe.sources) + 1)
def search(
    recipe: Recipe, parameters: LeaveOneOutParameters, tools: Tools, log: SearchRun
) -> SearchResult:
    """Run the recipe, and without each of its sources; each one is a nested trial.

    Raises:
        ConfigError: fewer sources than the method needs without one of them, or slices, modules or
            the tokenizer name a source.
        EvaluationError: no merge has a finite score.
    """
    needed = max(get(recipe.method.name).min_sources, 1) + 1
    if len(recipe.sources) < needed:
        raise ConfigError(
            f"leave_one_out needs at least {needed} sources for {recipe.method.name}; the recipe "
            f"has {len(recipe.sources)}, and `mergeops compare` shows each alone"
        )
    # All recipes are checked before the first one runs.
    others = {
        source: dataclasses.replace(without_source(recipe, source), name=f"without {source}")
        for source in recipe.sources
    }
    whole = run(recipe, tools, search=log)
    trials = {source: run(other, tools, search=log) for source, other in others.items()}
    scored: Mapping[str, Scores] = {n: t.scores for n, t in trials.items() if t.scores is not None}
    best = best_of([whole, *trials.values()])
    if best is None or whole.scores is None:
        raise EvaluationError("no merge has a finite score on dev, so none is the best")
    gains = gains_over(scored, whole.scores)
    rows: list[dict[str, Any]] = [_row("nothing", dev_columns(whole.scores), None)]
    for source, scores in scored.items():
        gain = gains[source]
        found = f"{gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        rows.append(_row(source, dev_columns(scores), found) | {"it": finding_of(gain)})
    report = {"gains": {source: dataclasses.asdict(gain) for source, gain in gains.items()}}
    return SearchResult(best, None, [whole, *trials.values()], rows, report=report)


def _row(source: str, columns: Mapping[str, Any], gain: str | None) -> dict[str, Any]:
    return {"left out": source, **columns, "merge gains": gain, "it": None}
