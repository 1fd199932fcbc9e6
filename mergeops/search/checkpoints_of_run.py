"""Which sources are checkpoints of one run, and in which order they were saved."""

from __future__ import annotations

import re

from mergeops.recipe import Recipe

_STEP = re.compile(r"(?:(?P<run>.+)/)?[^/]*(?:checkpoint|ckpt|step|iter|epoch)[-_=.]?(?P<n>\d+)/?")
"""A URI that ends as trainers name what they save: checkpoint-500, global_step500, iter_0000500."""


def oldest_first(recipe: Recipe) -> tuple[str, ...]:
    """Names of the sources in the order of their steps; none where they are not of one run.

    Args:
        recipe: its sources' URIs say the run (all but the last name) and the step (its number).
    """
    steps: dict[str, int] = {}
    runs = set()
    for name, spec in recipe.sources.items():
        found = _STEP.fullmatch(spec.uri)
        if found is None:
            return ()
        runs.add(found["run"])
        steps[name] = int(found["n"])
    if len(runs) != 1 or len(set(steps.values())) < len(steps):
        return ()
    return tuple(sorted(steps, key=lambda name: steps[name]))
