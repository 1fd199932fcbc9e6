"""Compatibility: what sets each source apart from the first input, and the planner's verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mergeops.errors import ConfigError, MergeError
from mergeops.planning import check_configs, check_tensors, check_tokenizers, make_plan, read_inputs
from mergeops.recipe import Recipe
from mergeops.sources import Resolved, Source


@dataclass(frozen=True)
class Fit:
    """Whether the inputs can be merged."""

    refused: str | None
    """Why the recipe cannot be planned; None where it can."""
    differences: Mapping[str, Sequence[str]]
    """Source -> what sets it apart from the first input; a recipe may provide for it."""
    warnings: tuple[str, ...]


def look_at_fit(recipe: Recipe, resolved: Resolved, base: Source | None) -> Fit:
    """Compare all headers, configs and vocabularies with the first input's, and try to plan.

    Args:
        recipe: what would be merged.
        resolved: its inputs.
        base: the base that is compared with, where there is one.

    Raises:
        SourceError: an input's files are missing or corrupt.
    """
    inputs = [*([base] if base else []), *resolved.sources.values()]
    (first, *others), headers, warnings = read_inputs(inputs)
    differences: dict[str, list[str]] = {}
    for planned in others:
        pair = [first, planned]
        checks: list[Callable[[], list[str] | None]] = [
            partial(check_configs, pair, recipe),
            partial(check_tensors, {p.name: headers[p.name] for p in pair}),
            partial(check_tokenizers, first, pair),
        ]
        for check in checks:
            try:
                warnings += check() or []
            except MergeError as error:
                differences.setdefault(planned.name, []).append(str(error))
    refused = None
    try:
        plan = make_plan(recipe, resolved.base, resolved.sources)
        warnings += plan.warnings
    except (ConfigError, MergeError) as error:
        refused = str(error)
    return Fit(refused, differences, tuple(dict.fromkeys(warnings)))
