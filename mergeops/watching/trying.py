"""The greedy step: a candidate is added to the best merge, and stays where that does not hurt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeops.adoption import FoundRun, source_names
from mergeops.errors import EvaluationError, MergeError, MergeopsError, SourceError
from mergeops.methods import get
from mergeops.pipeline import run
from mergeops.recipe import MethodSpec, Recipe, SourceSpec
from mergeops.scores import Scores, compare
from mergeops.sources import is_hub_name
from mergeops.tools import Tools
from mergeops.tracking import Trial
from mergeops.watching.state import Best, SeenRun


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
        recipe = self.recipe({name: candidate.uri}, candidate.base)
        scores = self._tools.score_parents(recipe)[name]
        best = Best({name: candidate.uri}, candidate.base, champion, dev=scores.pooled)
        return Contender(best, scores)

    def merged(
        self, sources: Mapping[str, str], base: str | None, champion: int | None
    ) -> Contender:
        """A merge of the sources, scored on dev, logged and registered; found where it was made.

        Raises:
            MergeopsError: they do not merge, or cannot be scored.
        """
        trial = run(self.recipe(sources, base), self._tools)
        if trial.scores is None or not math.isfinite(trial.merit):
            raise EvaluationError(f"{trial.name} has no finite score on dev")
        best = Best(
            dict(sources), base, champion, trial.registered, trial.plan_digest, trial.scores.pooled
        )
        return Contender(best, trial.scores, trial)

    def champion(self, logged: Recipe, version: int) -> Contender:
        """The champion's own merge, with the scores that it has."""
        sources = {name: spec.uri for name, spec in logged.sources.items()}
        kept = dataclasses.replace(self._with_evaluation(logged), name=logged.name)
        trial = run(kept, self._tools)
        if trial.scores is None:
            raise EvaluationError(f"version {version}, the champion, has no score on dev")
        best = Best(
            sources, logged.base, version, trial.registered, trial.plan_digest, trial.scores.pooled
        )
        return Contender(best, trial.scores, trial)

    def sha256(self, candidate: SeenRun) -> str:
        """Of a run's weights.

        Raises:
            SourceError: they cannot be read.
        """
        return self._tools.resolve_one(self._recipe, candidate.uri).sha256

    def recipe(self, sources: Mapping[str, str], base: str | None) -> Recipe:
        """The sources, equally weighted, by the watch's method."""
        method = self._recipe.method
        if len(sources) == 1:
            method = MethodSpec("linear", get("linear").parameters())
        chosen = self._recipe.base or base_uri(base)
        return dataclasses.replace(
            self._recipe,
            name=f"watch: {' + '.join(sources)}"[:200],
            method=method,
            base=chosen,
            sources={name: SourceSpec(uri) for name, uri in sources.items()},
        )

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
