"""The best candidates of earlier studies on the same sources: what a study tries first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergeops.checkpoint import replace_with
from mergeops.errors import MergeopsError
from mergeops.recipe import Recipe
from mergeops.search.racing import WHOLE
from mergeops.search.space import Choices
from mergeops.tools import Tools
from mergeops.tracking import SearchRun

FILE = "first.json"


def first_trials(
    recipe: Recipe, space: Choices, count: int, tools: Tools, log: SearchRun, folder: Path
) -> list[dict[str, Any]]:
    """Values of the best candidates of earlier studies, those that the space has.

    A study that goes on tries the same ones, whatever was done meanwhile.

    Args:
        recipe: of the study.
        space: what it chooses from.
        count: at most so many.
        tools: to resolve the sources.
        log: the search's run.
        folder: of the study.
    """
    file = folder / FILE
    if file.is_file():
        kept: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        return kept[:count]
    reports = log.earlier_reports(_digest(recipe, tools))
    first = _best(reports, space)[:count]
    if first:
        tools.progress.step(f"{len(first)} candidates of earlier studies are tried first")
    with replace_with(file) as temporary:
        temporary.write_text(json.dumps(first), encoding="utf-8")
    return first


def _digest(recipe: Recipe, tools: Tools) -> str:
    """Of the weights that are merged, by the names that values have."""
    resolved = tools.resolve(recipe)
    named = {name: source.sha256 for name, source in resolved.sources.items()}
    text = json.dumps([resolved.base.sha256 if resolved.base else None, named], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _best(reports: Sequence[Mapping[str, Any]], space: Choices) -> list[dict[str, Any]]:
    """The best of each study in turn, the newest study first."""
    ranked = [
        sorted(
            (row for row in report.get("trials", []) if row["state"] == WHOLE),
            key=lambda row: row["score"],
            reverse=True,
        )
        for report in reports
    ]
    found: list[dict[str, Any]] = []
    for place in range(max(map(len, ranked), default=0)):
        for rows in ranked:
            values = rows[place]["parameters"] if place < len(rows) else None
            if values and values not in found and _fits(values, space):
                found.append(values)
    return found


def _fits(values: Mapping[str, Any], space: Choices) -> bool:
    axes = {axis.name: axis for axis in space.axes}
    if not all(name in axes and axes[name].holds(value) for name, value in values.items()):
        return False
    needed = {
        axis.name
        for axis in space.axes
        if axis.methods is None or values.get("method", space.recipe.method.name) in axis.methods
    }
    if needed != set(values):
        return False
    try:
        space.made(values)
    except MergeopsError:
        return False
    return True
