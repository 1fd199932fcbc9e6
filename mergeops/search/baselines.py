"""What a study must beat: merges that need no search, and the best source."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mergeops.methods import get
from mergeops.recipe import MethodSpec, Recipe
from mergeops.search.greedy_soup import soup_recipe
from mergeops.search.space import Space


@dataclass(frozen=True)
class Baseline:
    """A merge that needs no search."""

    name: str
    recipe: Recipe
    values: dict[str, Any] | None
    """The same merge in the study's space; None where that has none."""


def baselines(space: Space) -> list[Baseline]:
    """The uniform soup, and with a base task arithmetic with weights of 0.3 and of 1/n.

    Yadav et al. 2023, https://arxiv.org/abs/2306.01708, take 0.3 to 0.4 without validation data.
    """
    recipe, n = space.recipe, len(space.recipe.sources)
    soup = soup_recipe(recipe, tuple(recipe.sources))
    found = [Baseline("uniform soup", soup, space.at("linear", 1.0))]
    if recipe.base is not None:
        method = get("task_arithmetic")
        for weight in dict.fromkeys((0.3, round(1 / n, 4))):
            vectors = dataclasses.replace(
                soup,
                name=f"task arithmetic {weight:g}",
                method=MethodSpec(method.name, method.parameters(weight=weight)),
            )
            found.append(Baseline(str(vectors.name), vectors, space.at(method.name, weight)))
    return found
