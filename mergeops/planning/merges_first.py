"""Merges that a recipe is made from, each made before it and found by its plan digest.

All of them, and the recipe itself, are planned before the first is made: from outlines of those
that come before. So nothing is written where the last one turns out to be impossible.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mergeops.errors import MergeError, locating
from mergeops.planning.plan import Plan, write_small_files
from mergeops.planning.planner import make_plan
from mergeops.recipe import MERGE, Recipe
from mergeops.sources import Resolved

Digests = Mapping[Path, str]
"""Directory -> digest of its weights, where that is known without reading them."""
Resolve = Callable[[Recipe, Digests], Resolved]
Merge = Callable[[Plan, str], Path]


def merge_dir(work_dir: Path, plan: Plan) -> Path:
    """Where a merge is kept, to be found by its digest."""
    return dir_of_digest(work_dir, plan.digest)


def dir_of_digest(work_dir: Path, digest: str) -> Path:
    """Where what a digest names is kept."""
    return work_dir / "merges" / digest[:16]


def resolve_with_merges(recipe: Recipe, resolve: Resolve, merge: Merge) -> Resolved:
    """Find a recipe's inputs, and make those that are merges.

    Args:
        recipe: may name ``merge:NAME``.
        resolve: finds the inputs of a recipe that names none.
        merge: executes a plan, or finds it done; told the merge's name.

    Raises:
        MergeopsError: as planning and merging; where the recipe or one of its merges cannot be
            planned, nothing was merged.
    """
    if recipe.merges:
        _plan_all(recipe, resolve)
    places: dict[str, Path] = {}
    for name, needed in _merges(recipe):
        resolved = _resolve(needed, places, {}, resolve)
        places[name] = merge(make_plan(needed, resolved.base, resolved.sources), name)
    with locating("", recipe.origins):
        return _resolve(recipe, places, {}, resolve)


def _plan_all(recipe: Recipe, resolve: Resolve) -> None:
    """Plan every merge and the recipe from headers alone; refuse what cannot work."""
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        places: dict[str, Path] = {}
        digests: dict[Path, str] = {}
        for name, merge in _merges(recipe):
            with locating(f"merges.{name}", recipe.origins):
                resolved = _resolve(merge, places, digests, resolve)
                plan = make_plan(merge, resolved.base, resolved.sources)
                places[name] = _write_outline(plan, Path(folder, name.replace("/", "_")))
            # What it will be is as good as the digest of its weights to tell merges apart.
            digests[places[name].resolve()] = plan.digest
        with locating("", recipe.origins):
            resolved = _resolve(recipe, places, digests, resolve)
        make_plan(recipe, resolved.base, resolved.sources)


def _merges(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """The merges in order, with the settings that hold for the whole recipe."""
    whole = ("output", "tracking", "path_map", "trust_remote_code")
    settings = {key: getattr(recipe, key) for key in whole}
    for name, merge in recipe.merges.items():
        yield name, dataclasses.replace(merge, **settings)


def _resolve(
    recipe: Recipe, places: Mapping[str, Path], digests: Digests, resolve: Resolve
) -> Resolved:
    def placed(uri: str | None) -> str | None:
        name = (uri or "").removeprefix(MERGE)
        return uri if uri is None or name == uri else str(places[name].absolute())

    resolved = resolve(
        dataclasses.replace(
            recipe,
            merges={},
            base=placed(recipe.base),
            base_adapter=placed(recipe.base_adapter),
            sources={
                name: dataclasses.replace(s, uri=placed(s.uri) or s.uri, base=placed(s.base))
                for name, s in recipe.sources.items()
            },
        ),
        digests,
    )
    # Records name the merge, not where it happens to be.
    base = resolved.base
    if base is not None and recipe.base is not None:
        base = dataclasses.replace(base, uri=recipe.base_adapter or recipe.base)
    sources = {
        name: dataclasses.replace(source, uri=recipe.sources[name].uri)
        for name, source in resolved.sources.items()
    }
    return dataclasses.replace(resolved, base=base, sources=sources)


def _write_outline(plan: Plan, place: Path) -> Path:
    """Write what the result of a plan looks like into a new directory, and return that."""
    try:
        place.mkdir()
        for shard in plan.shards:
            (place / shard.name).write_bytes(shard.header)
            os.truncate(place / shard.name, shard.nbytes)
        write_small_files(plan, place)
    except OSError as error:
        raise MergeError(f"{place} cannot be written: {error.strerror or error}") from error
    return place
