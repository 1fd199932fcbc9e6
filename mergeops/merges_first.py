"""Merges that a recipe is made from, each made before it and found by its plan digest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mergeops.plan import Plan, make_plan
from mergeops.recipe import MERGE, Recipe

if TYPE_CHECKING:
    from mergeops.sources import Resolved

Resolve = Callable[[Recipe], "Resolved"]
Merge = Callable[[Plan, str], Path]


def merge_dir(work_dir: Path, plan: Plan) -> Path:
    """Where a merge is kept, to be found by its digest."""
    return work_dir / "merges" / plan.digest[:16]


def resolve_with_merges(recipe: Recipe, resolve: Resolve, merge: Merge) -> Resolved:
    """Find a recipe's inputs, and make those that are merges.

    Args:
        recipe: may name ``merge:NAME``.
        resolve: finds the inputs of a recipe that names none.
        merge: executes a plan, or finds it done; told the merge's name.

    Raises:
        MergeopsError: as planning and merging.
    """
    places: dict[str, Path] = {}
    for name, one in recipe.merges.items():
        one = dataclasses.replace(
            one,
            output=recipe.output,
            tracking=recipe.tracking,
            path_map=recipe.path_map,
            trust_remote_code=recipe.trust_remote_code,
        )
        resolved = _resolve(one, places, resolve)
        places[name] = merge(make_plan(one, resolved.base, resolved.sources), name)
    return _resolve(recipe, places, resolve)


def _resolve(recipe: Recipe, places: Mapping[str, Path], resolve: Resolve) -> Resolved:
    def placed(uri: str | None) -> str | None:
        name = (uri or "").removeprefix(MERGE)
        return uri if uri is None or name == uri else str(places[name].absolute())

    found = resolve(
        dataclasses.replace(
            recipe,
            merges={},
            base=placed(recipe.base),
            sources={
                name: dataclasses.replace(s, uri=placed(s.uri) or s.uri, base=placed(s.base))
                for name, s in recipe.sources.items()
            },
        )
    )
    # Records name the merge, not where it happens to be.
    base = found.base
    if base is not None and recipe.base is not None:
        base = dataclasses.replace(base, uri=recipe.base)
    sources = {
        name: dataclasses.replace(source, uri=recipe.sources[name].uri)
        for name, source in found.sources.items()
    }
    return dataclasses.replace(found, base=base, sources=sources)
