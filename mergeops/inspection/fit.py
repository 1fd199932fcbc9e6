"""Compatibility: what sets each source apart from the first input, and the planner's verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mergeops.errors import ConfigError, MergeError
from mergeops.inputs import read_input
from mergeops.plan import make_plan
from mergeops.preflight import check_configs, check_tensors, check_tokenizers
from mergeops.recipe import Recipe
from mergeops.sources import Resolved, Source


@dataclass(frozen=True)
class Fit:
    """Whether the inputs can be merged."""

    refused: str | None
    """Why the recipe cannot be planned; None where it can."""
    differences: Mapping[str, tuple[str, ...]]
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
    (first, headers), *others = [read_input(source) for source in inputs]
    differences: dict[str, tuple[str, ...]] = {}
    warnings: list[str] = []

    for planned, theirs in others:
        found: list[str] = []

        def ask(check: Callable[[], list[str] | None], found: list[str] = found) -> None:
            try:
                warnings.extend(check() or [])
            except MergeError as error:
                found.append(str(error))

        pair = [first, planned]
        named = {first.name: headers, planned.name: theirs}
        ask(lambda pair=pair: check_configs(pair, recipe))  # type: ignore[misc]
        ask(lambda named=named: check_tensors(named))  # type: ignore[misc]
        ask(lambda pair=pair: check_tokenizers(pair[0], pair))  # type: ignore[misc]
        if found:
            differences[planned.name] = tuple(found)
    refused = None
    try:
        plan = make_plan(recipe, resolved.base, resolved.sources)
        warnings += plan.warnings
    except (ConfigError, MergeError) as error:
        refused = str(error)
    return Fit(refused, differences, tuple(dict.fromkeys(warnings)))
