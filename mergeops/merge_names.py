"""Names of merges: ``merge:NAME`` is the URI of a merge that the same recipe makes first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mergeops.errors import ConfigError

if TYPE_CHECKING:
    from mergeops.recipe import Recipe

MERGE = "merge:"
"""Begins the URI of another merge of the recipe."""


def check_uris(recipe: Recipe, made: Iterable[str] = ()) -> None:
    """Every ``merge:NAME`` is a merge of the recipe, and those name only earlier ones.

    Args:
        recipe: with its merges.
        made: names of merges that are made before all of them.

    Raises:
        ConfigError: one is not.
    """
    known = list(made)
    for label, one in [*recipe.merges.items(), ("", recipe)]:
        of_sources = (uri for s in one.sources.values() for uri in (s.uri, s.base))
        for uri in [one.base, one.base_adapter, *of_sources]:
            name = (uri or "").removeprefix(MERGE)
            if uri is None or name == uri:
                continue
            if name not in known:
                where = f"merges.{label} names" if label else "the recipe names"
                raise ConfigError(
                    f"{where} {uri}, but no such merge is made before it; known there: "
                    + (", ".join(known) or "none")
                )
        known.append(label)
