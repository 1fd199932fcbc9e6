"""The greedy step: a candidate is added to the best merge, and stays where that does not hurt.

Around a merge that came of it, a small search tries other weights and densities.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.adoption import FoundRun, source_names
from mergeops.errors import (
    AwayError,
    EvaluationError,
    MergeError,
    MergeopsError,
    SourceError,
    TrackingError,
)
from mergeops.methods import get
from mergeops.pipeline import run
from mergeops.promotion import read_history
from mergeops.recipe import MethodSpec, Recipe, SearchSpec, SourceSpec
from mergeops.schema import is_finite
from mergeops.scores import Scores, compare
from mergeops.search import run_search
from mergeops.sources import is_hub_name
from mergeops.tools import Tools
from mergeops.tracking import Trial, find_version, read_recipe
from mergeops.watching.state import Best, SeenRun

_FIXED = {"slices", "modules", "merges"}
"""Parts of a recipe that name its sources one by one."""


@dataclass(frozen=True)
class Contender:
    """The merge, or the single run, that candidates are measured against."""

    best: Best
    scores: Scores
    trial: Trial | None = None

    @property
    def merit(self) -> float:
        """Larger is better."""
        return self.scores.merit


class WatchBench:
    """Makes and scores what a watch tries.

    Args:
        recipe: what trials have in common: method, evaluate, tracking.
        tools: shared by all trials.
    """

    def __init__(self, recipe: Recipe, tools: Tools) -> None:
        self._recipe = recipe
        self._tools = tools

    def single(self, candidate: SeenRun, champion: int | None) -> Contender:
        """A run alone, scored on dev.

        Raises:
            MergeopsError: it cannot be read or scored.
        """
        name = name_of(candidate, ())
        best = Best({name: candidate.uri}, candidate.base, champion)
        scores = self._tools.score_parents(self.recipe(best))[name]
        return Contender(dataclasses.replace(best, dev=scores.pooled), scores)

    def merged(self, best: Best) -> Contender:
        """A merge, scored on dev, logged and registered; found where it was made.

        Raises:
            MergeopsError: the sources do not merge, or cannot be scored.
        """
        trial = run(self.recipe(best), self._tools)
        if trial.scores is None or not math.isfinite(trial.merit):
            raise EvaluationError(f"{trial.name} has no finite score on dev")
        return self._contender(best, trial, trial.scores)

    def searched(self, standing: Contender, candidates: int, minutes: float) -> Contender:
        """The best of a small search around a merge: other weights and densities, raced on items.

        Args:
            standing: the merge.
            candidates: so many are proposed.
            minutes: of merging and scoring, of all tries of this search together.

        Returns:
            The merge itself where none is better.

        Raises:
            MergeopsError: MLflow is away.
        """
        recipe = self.recipe(standing.best)
        space = around(recipe)
        if not space:
            return standing
        parameters = {"trials": candidates, "space": space, "budget": f"{minutes:g}m", "earlier": 0}
        wanted = dataclasses.replace(recipe, search=SearchSpec("optuna", parameters))
        try:
            trial = run_search(wanted, self._tools.progress, self._tools).best
        except EvaluationError:
            # None of them could be scored.
            return standing
        if trial is None or trial.scores is None or trial.merit <= standing.merit:
            return standing
        made = self._contender(standing.best, trial, trial.scores)
        found = Recipe.from_dict(read_recipe(self._tools.tracking, trial.run_id))
        best = dataclasses.replace(made.best, recipe=found.weights_dict())
        return dataclasses.replace(made, best=best)

    def champion(self) -> Contender | None:
        """The champion's own merge, with the scores that it has; None where there is none that
        mergeops made.

        Raises:
            MergeopsError: MLflow is away, or the merge has no scores.
        """
        tracking, name = self._tools.tracking, self._recipe.tracking.registered_model
        try:
            version = read_history(tracking, name).champion
            if version is None:
                return None
            run_id = str(find_version(tracking, name, version).run_id)
            logged = Recipe.from_dict(read_recipe(tracking, run_id))
        except AwayError:
            raise
        except TrackingError:
            return None
        kept = dataclasses.replace(self._with_evaluation(logged), name=logged.name)
        trial = run(kept, self._tools)
        if trial.scores is None:
            raise EvaluationError(f"version {version}, the champion, has no score on dev")
        sources = {source: spec.uri for source, spec in logged.sources.items()}
        # What was searched around was the merge that it came from.
        best = Best(sources, logged.base, version, recipe=logged.weights_dict(), is_searched=True)
        return self._contender(best, trial, trial.scores)

    def sha256(self, candidate: SeenRun) -> str:
        """Of a run's weights.

        Raises:
            SourceError: they cannot be read.
        """
        return self._tools.resolve_one(self._recipe, candidate.uri).sha256

    def recipe(self, best: Best) -> Recipe:
        """The merge as a recipe: its own, or its sources equally weighted by the watch's method."""
        name = f"watch: {' + '.join(best.sources)}"[:200]
        if best.recipe:
            return Recipe.from_dict({**self._recipe.to_dict(), **best.recipe, "name": name})
        method = self._recipe.method
        if len(best.sources) == 1:
            method = MethodSpec("linear", get("linear").parameters())
        return dataclasses.replace(
            self._recipe,
            name=name,
            method=method,
            base=self._recipe.base or base_uri(best.base),
            sources={source: SourceSpec(uri) for source, uri in best.sources.items()},
        )

    @staticmethod
    def _contender(best: Best, trial: Trial, scores: Scores) -> Contender:
        if not trial.registered:
            # It is kept, and logged when the same is run again: what is no version is no proposal.
            raise AwayError(
                f"MLflow went away before {trial.name} was registered; the round begins again"
            )
        made = dataclasses.replace(
            best,
            registered=trial.registered,
            plan_digest=trial.plan_digest,
            dev=scores.pooled,
        )
        return Contender(made, scores, trial)

    def _with_evaluation(self, logged: Recipe) -> Recipe:
        own = self._recipe
        return dataclasses.replace(
            logged,
            evaluate=own.evaluate,
            tracking=own.tracking,
            output=own.output,
            promote=own.promote,
            path_map={**logged.path_map, **own.path_map},
        )


def with_candidate(best: Best, candidate: SeenRun) -> Best:
    """The greedy step: one source more in the recipe of a merge.

    Its parameters (weight, density) are the mean of the other sources', which for equal weights is
    one equal share more. A recipe that takes no further source (one of layers, of merges first, or
    of a method for two) gives way to equal weights by the watch's method.
    """
    name = name_of(candidate, best.sources)
    recipe = copy.deepcopy(dict(best.recipe))
    if recipe:
        method, own = get(recipe["method"]["name"]), recipe["sources"]
        most = method.max_sources
        if _FIXED & recipe.keys() or (most is not None and len(own) >= most):
            recipe = {}
        else:
            own[name] = {"uri": candidate.uri, **_means(own, method.source_parameters)}
    return Best(
        {**best.sources, name: candidate.uri},
        best.base or candidate.base,
        best.champion,
        recipe=recipe,
    )


def around(recipe: Recipe) -> dict[str, list[float]]:
    """The space of a small search: weights and densities from half to one and a half times of what
    they are; empty where the method reads neither."""
    method, space = recipe.method, dict[str, list[float]]()
    for name, source in recipe.sources.items():
        for key in {"weight", "density"} & set(get(method.name).source_parameters):
            value = source.parameters.get(key, getattr(method.parameters, key))
            # All sources without a density of their own have the method's.
            if key == "weight" or key in source.parameters:
                space |= _range(f"sources.{name}.{key}", value, key)
    if hasattr(method.parameters, "density"):
        space |= _range("method.density", method.parameters.density, "density")
    return space


def _range(name: str, value: Any, key: str) -> dict[str, list[float]]:
    if not is_finite(value) or value <= 0:
        return {}
    high = 1.5 * value
    return {name: [0.5 * value, min(high, 1.0) if key == "density" else high]}


def _means(sources: Mapping[str, Mapping[str, Any]], parameters: Sequence[str]) -> dict[str, float]:
    """Of each parameter that every source sets to a number."""
    means = {}
    for key in parameters:
        values = [value for source in sources.values() if is_finite(value := source.get(key))]
        if len(values) == len(sources):
            means[key] = statistics.fmean(values)
    return means


def best_alone(standing: Contender) -> Contender | None:
    """The best of a merge's sources, which it has to beat where there is no champion."""
    parents = standing.trial.parents if standing.trial is not None else {}
    alone = [(name, scores) for name, scores in parents.items() if name != "base"]
    if not alone:
        return None
    _, scores = max(alone, key=lambda pair: pair[1].merit)
    return Contender(standing.best, scores)


def gain_over(better: Scores, worse: Scores, confidence: float) -> tuple[float, float]:
    """The paired difference on dev, and its one-sided lower bound."""
    compared = compare(better, worse, confidence=2 * confidence - 1)
    return compared.difference, compared.low


def name_of(candidate: SeenRun, taken: Any) -> str:
    """A short source name that no other has."""
    found = FoundRun(candidate.run_id, candidate.name, candidate.status)
    [name] = source_names([found])
    number, free = 2, name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def base_uri(base: str | None) -> str | None:
    """What a recipe writes for the base that a run names; None where it leads nowhere."""
    if base is None:
        return None
    if Path(base).is_dir():
        return base
    return f"hf://{base}" if is_hub_name(base) else None


def is_of_candidate(error: MergeopsError) -> bool:
    """Whether an error speaks of what was tried, rather than of the server or the settings."""
    return isinstance(error, SourceError | MergeError)
