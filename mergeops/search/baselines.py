"""What a study must beat: merges that need no search, and the best source."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import Any

from mergeops.methods import get
from mergeops.recipe import MethodSpec, Recipe
from mergeops.scores import Scores, estimate
from mergeops.search.bench import Bench, Candidate, Way
from mergeops.search.greedy_soup import choose, soup_recipe
from mergeops.search.objectives import EVERYTHING
from mergeops.search.racing import Stages
from mergeops.search.space import Choices
from mergeops.tracking import SearchRun

UNIFORM, GREEDY = "uniform soup", "greedy soup"


@dataclass(frozen=True)
class Simple:
    """A merge that needs no search."""

    name: str
    recipe: Recipe
    values: dict[str, Any] | None
    """The same merge in the study's space; None where that has none."""


def simple_merges(space: Choices, checkpoints: Sequence[str] = ()) -> list[Simple]:
    """The uniform soup, with a base task arithmetic with weights of 0.3 and of 1/n, and means of
    the last 2, 4, 8, ... checkpoints of a run.

    Yadav et al. 2023, https://arxiv.org/abs/2306.01708, take 0.3 to 0.4 without validation data.

    Args:
        space: of the study.
        checkpoints: the sources, oldest first, where they are checkpoints of one run.
    """
    recipe, n = space.recipe, len(space.recipe.sources)
    soup = soup_recipe(recipe, tuple(recipe.sources))
    found = [Simple(UNIFORM, soup, space.at("linear", dict.fromkeys(recipe.sources, 1.0)))]
    for length in takewhile(lambda k: k < len(checkpoints), (2**i for i in count(1))):
        last = checkpoints[-length:]
        window = dataclasses.replace(soup_recipe(recipe, tuple(last)), name=f"last {length}")
        weights = {name: float(name in last) for name in recipe.sources}
        found.append(Simple(f"last {length}", window, space.at("linear", weights)))
    if recipe.base is not None:
        method = get("task_arithmetic")
        for weight in dict.fromkeys((0.3, round(1 / n, 4))):
            vectors = dataclasses.replace(
                soup,
                name=f"task arithmetic {weight:g}",
                method=MethodSpec(method.name, method.parameters(weight=weight)),
            )
            at = space.at(method.name, dict.fromkeys(recipe.sources, weight))
            found.append(Simple(str(vectors.name), vectors, at))
    return found


@dataclass(kw_only=True)
class Baselines:
    """The baselines of one study, asked as far as they can still be the best.

    Args:
        space: of the study.
        bench: merges and scores; its race gets its first leaders.
        log: the run of the search in MLflow.
        parents: scores of the base and the sources on all dev items.
        checkpoints: the sources, oldest first, where they are checkpoints of one run.
    """

    space: Choices
    bench: Bench
    log: SearchRun
    parents: Mapping[str, Scores]
    checkpoints: Sequence[str] = ()
    sources: dict[str, Stages] = field(default_factory=dict)
    """The sources' scores on the items of each stage, under the names that the race has."""
    candidates: dict[str, Candidate] = field(default_factory=dict)
    """By name."""
    tried: list[Candidate] = field(default_factory=list)
    """These, and every step of the greedy soup."""

    def run(self) -> None:
        """Ask what needs no search; the greedy soup (Wortsman et al. 2022) is made of its steps.

        The uniform soup is asked everything. Of the others each is dropped once it has lost to
        what leads, and each step of the greedy soup once it has lost to the soup before it.

        Raises:
            MergeopsError: one cannot be merged or scored, as all other candidates.
        """
        race = self.bench.race
        for name, stages in self.sources.items():
            race.finish(name, stages)
        for simple in simple_merges(self.space, self.checkpoints):
            way = Way(is_raced=simple.name != UNIFORM and len(race.shares) > 1)
            self._add(simple.name, self.bench.try_out(simple.name, simple.recipe, way))
        self._run_greedy()

    def values(self, space: Choices) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and values of those that the space has."""
        for simple in simple_merges(space, self.checkpoints):
            if simple.values is not None:
                yield simple.name, simple.values

    def _run_greedy(self) -> None:
        recipe = self.space.recipe
        singles = {name: self.parents[name].merit for name in recipe.sources}
        first = max(singles, key=lambda name: singles[name])
        race = dataclasses.replace(self.bench.race, objectives=(EVERYTHING,), limits=(), leaders={})
        race.finish(first, self.sources[source_key(first)])
        soups: dict[tuple[str, ...], Candidate] = {}

        def score_soup(names: tuple[str, ...]) -> float:
            way = Way(is_raced=len(race.shares) > 1)
            made = soup_recipe(recipe, names)
            soup = self.bench.try_out(str(made.name), made, way, race)
            soups[names] = soup
            self.tried.append(soup)
            if not soup.is_whole:
                return -math.inf
            race.finish(soup.plan_digest, soup.stages)
            return soup.scores.merit

        best, _ = choose(singles, score_soup)
        if len(best) > 1:
            self._add(GREEDY, soups[best])

    def _add(self, name: str, candidate: Candidate) -> None:
        self.candidates[name] = candidate
        self.tried.append(candidate)
        scores, whole = candidate.scores, candidate.is_whole
        asked = "" if whole else f", dropped after {candidate.answers} items"
        self.bench.tools.progress.step(f"{name}: {estimate(scores)} on dev{asked}")
        if whole:
            self.bench.race.finish(candidate.plan_digest, candidate.stages)
            self.log.log_trial(scores.pooled, higher_is_better=scores.higher_is_better)


def source_key(name: str) -> str:
    """What the race calls a source; merges have their plan's digest."""
    return f"source-{name}"
