"""The models that a candidate is compared with: its best parent, the champion, the base.

They are found here, and scored later. The best parent is chosen by its dev score, so nothing here
touches the confirm part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mergeops.errors import AwayError, TrackingError
from mergeops.recipe import Recipe
from mergeops.scores import Scores
from mergeops.sources import Source
from mergeops.store import own_tags
from mergeops.tools import Tools
from mergeops.tracking import find_version, read_scores


@dataclass(frozen=True)
class Reference:
    """One model to be beaten."""

    label: str
    """E.g. ``best_parent:math``, ``base`` or ``champion:3``."""
    source: Source
    is_parent: bool
    dev: Scores | None
    """Its dev scores, where they are known."""

    def score(self, tools: Tools, recipe: Recipe, part: str) -> Scores:
        """Score it on a part of the tools' tasks, or find it scored; a parent is logged as such."""
        if self.is_parent:
            return tools.score_parent(recipe, self.source, part)
        label = self.label.replace(":", ", version ")
        return tools.score_source(label, recipe, self.source, part)


def find_references(
    tools: Tools, recipe: Recipe, name: str, champion: int | None
) -> list[Reference]:
    """Those of ``promote.against`` that exist.

    Args:
        name: the registered model.
        champion: its champion's version.

    Raises:
        MergeopsError: one cannot be found or scored on dev.
    """
    wanted = recipe.promote.against
    resolved = tools.resolve(recipe)
    references = []
    dev: Mapping[str, Scores] = {}
    if "best_parent" in wanted or "base" in wanted:
        dev = tools.score_parents(recipe)
    if "best_parent" in wanted and recipe.sources:
        best = best_parent({source: dev[source] for source in recipe.sources})
        references.append(Reference(f"best_parent:{best}", resolved.sources[best], True, dev[best]))
    if "base" in wanted and resolved.base is not None:
        references.append(Reference("base", resolved.base, True, dev["base"]))
    if "champion" in wanted and champion is not None:
        source = tools.resolve_one(recipe, f"models:/{name}/{champion}")
        dev_scores = _logged_dev_scores(tools, name, champion)
        references.append(Reference(f"champion:{champion}", source, False, dev_scores))
    return references


def best_parent(dev: Mapping[str, Scores]) -> str:
    """The source with the best pooled dev score, the first of equals."""
    return max(dev, key=lambda source: dev[source].merit)


def _logged_dev_scores(tools: Tools, name: str, version: int) -> Scores | None:
    registered = find_version(tools.tracking, name, version)
    run_id = own_tags(registered.tags).get("mergeops.run_id") or registered.run_id
    if not run_id:
        return None
    try:
        return read_scores(tools.tracking, str(run_id), "dev")
    except AwayError:
        raise
    except TrackingError:
        return None
