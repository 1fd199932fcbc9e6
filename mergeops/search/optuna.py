"""Optuna: trials that a sampler proposes, raced on items, from baselines that must be beaten.

Akiba et al. 2019, https://arxiv.org/abs/1907.10902; the sampler is by default the tree-structured
Parzen estimator (Bergstra et al. 2011). Candidates are merged in memory and scored on more and more
items of the dev part; only the best of those that were asked everything become trials of their own,
with a checkpoint, a run and a registered version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.recipe import Recipe
from mergeops.schema import check_choice, check_range
from mergeops.search.checkpoints_of_run import oldest_first
from mergeops.search.objectives import read_limits, read_objectives
from mergeops.search.samplers import SAMPLERS, open_sampler
from mergeops.search.space import Space, default_space
from mergeops.search.spending import read_budget
from mergeops.search.strategies import SearchResult, strategy
from mergeops.search.study_run import StudySettings, check_sources, run_study
from mergeops.tools import Tools
from mergeops.tracking import SearchRun

TRIALS, ENDLESS = 32, 100_000
"""Proposals, and where a budget ends the study."""


@dataclass(frozen=True)
class OptunaParameters:
    """Parameters of ``optuna``."""

    trials: int | None = None
    """Candidates that the sampler proposes, beside the baselines; null: 32, or as many as the
    budget allows."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """Key -> [LOW, HIGH] or choices, e.g. {method: [linear, ties], sources.*.weight: [0.0, 1.0]};
    empty: method, weights and density."""
    sampler: str = "tpe"
    """tpe, gp (Gaussian process), cmaes (numbers only), nsga2 (many trials) or random."""
    objectives: tuple[str, ...] = ()
    """Tasks or groups that are each to be as good as can be, e.g. [math, code]; empty: all tasks
    together."""
    constraints: Mapping[str, float] = field(default_factory=dict)
    """Task -> the smallest difference to the base (without one, to the best source) that a merge
    may have, e.g. {retention: -0.01}."""
    budget: str = ""
    """When nothing new is begun: a time of merging and scoring (2h, 30m) or '20 evaluations'."""
    racing: bool = True
    """Drop a candidate once it has lost; false asks every candidate everything."""
    margin: float = 0.01
    """A lead that matters: one that leads by less may be dropped."""
    keep: int = 1
    """How many of the best become trials with a checkpoint, a run and a version."""
    earlier: int = 3
    """So many of the best candidates of an earlier study on the same sources are tried first."""
    seed: int = 0
    """Of the sampler."""

    def __post_init__(self) -> None:
        if self.trials is not None:
            check_range("search.trials", self.trials, 1, ENDLESS)
        check_range("search.margin", self.margin, 0.0, 1.0)
        check_range("search.keep", self.keep, 1, 100)
        check_range("search.earlier", self.earlier, 0, 100)
        check_range("search.seed", self.seed, 0, None)
        check_choice("search.sampler", self.sampler, SAMPLERS)
        read_budget(self.budget)

    def completed(self, recipe: Recipe) -> OptunaParameters:
        """With the space that a recipe gets by itself, where none is asked for."""
        trials = self.trials or (ENDLESS if self.budget else TRIALS)
        space = dict(self.space) or default_space(recipe)
        return dataclasses.replace(self, space=space, trials=trials)


def _merges(recipe: Recipe, parameters: OptunaParameters) -> int | None:
    """At most: proposals, three baselines, windows, the steps of the greedy soup, the kept ones."""
    trials = parameters.completed(recipe).trials
    if trials == ENDLESS or trials is None:
        return None
    windows = max((len(oldest_first(recipe)) - 1).bit_length() - 1, 0)
    return trials + 3 + windows + max(len(recipe.sources) - 1, 0) + parameters.keep


@strategy("optuna", trials=_merges)
def search(
    recipe: Recipe, parameters: OptunaParameters, tools: Tools, log: SearchRun
) -> SearchResult:
    """Run a study: baselines, then what the sampler proposes; the best become trials.

    A study that was killed goes on: it is gone through again, and what was scored is found.

    Raises:
        ConfigError: a space, a sampler, an objective or a limit that does not fit, or fewer than
            two sources.
        EvaluationError: no candidate has a finite score, or none keeps the limits.
        MergeopsError: a baseline cannot be merged or scored.
    """
    check_sources("optuna", recipe)
    space, tasks = Space.read(recipe, parameters.space), tools.load_tasks()
    assert tasks is not None, "a search without tasks is refused before"
    objectives = read_objectives(parameters.objectives, tasks)
    limits = read_limits(parameters.constraints, tasks)
    settings = StudySettings(
        trials=parameters.completed(recipe).trials or TRIALS,
        objectives=objectives,
        limits=limits,
        budget=read_budget(parameters.budget),
        racing=parameters.racing,
        margin=parameters.margin,
        keep=parameters.keep,
        earlier=parameters.earlier,
        checkpoints=oldest_first(recipe),
    )
    sampler = open_sampler(
        parameters.sampler,
        space,
        parameters.seed,
        objectives=len(objectives),
        has_limits=bool(limits),
    )
    return run_study(recipe, space, sampler, settings, tools, log)
