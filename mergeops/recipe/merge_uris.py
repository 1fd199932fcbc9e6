"""Names of merges: ``merge:NAME`` is the URI of a merge that the same recipe makes first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mergeops.errors import ConfigError

MERGE = "merge:"
"""Begins the URI of another merge of the recipe."""


def check_uris(recipes: Iterable[tuple[str, Sequence[str | None]]], made: Iterable[str]) -> None:
    """Every ``merge:NAME`` is a merge of the recipe, and those name only earlier ones.

    Args:
        recipes: the name of each merge and the URIs that it reads, in order; the recipe's own last,
            without a name.
        made: names of merges that are made before all of them.

    Raises:
        ConfigError: one is not.
    """
    known = list(made)
    for label, uris in recipes:
        for uri in uris:
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
