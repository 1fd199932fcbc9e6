"""Optuna: trials that a sampler proposes, raced on items, from baselines that must be beaten.

Akiba et al. 2019, https://arxiv.org/abs/1907.10902; the sampler is by default the tree-structured
Parzen estimator (Bergstra et al. 2011). Candidates are merged in memory and scored on more and more
items of the dev part; only the best of those that were asked everything become trials of their own,
with a checkpoint, a run and a registered version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.checkpoint import locked
from mergeops.errors import ConfigError, EvaluationError
from mergeops.evaluate import TaskSet, part_sizes
from mergeops.pipeline import best_of, run
from mergeops.recipe import Recipe
from mergeops.schema import check_choice, check_range
from mergeops.scores import Scores
from mergeops.search.baselines import Baselines, source_key
from mergeops.search.bench import Bench, Candidate
from mergeops.search.budget import read_budget
from mergeops.search.crew import Alone
from mergeops.search.objectives import read_limits, read_objectives
from mergeops.search.racing import Race, Stages, stages
from mergeops.search.samplers import SAMPLERS, open_sampler
from mergeops.search.space import Space, default_space
from mergeops.search.strategies import SearchResult, dev_columns, strategy
from mergeops.search.study import Study
from mergeops.search.study_page import log_study
from mergeops.search.study_report import report
from mergeops.tools import Tools
from mergeops.tracking import SearchRun

ALPHA = 0.05
"""Chance that racing drops the best of all although it leads by the margin."""
SHOWN = 10
"""Candidates in the table that a search ends with."""
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
    """At most: proposals, three baselines, the steps of the greedy soup, and the kept ones."""
    trials = parameters.completed(recipe).trials
    if trials == ENDLESS or trials is None:
        return None
    return trials + 3 + max(len(recipe.sources) - 1, 0) + parameters.keep


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
    if len(recipe.sources) < 2:
        raise ConfigError(
            f"optuna needs at least two sources to merge; the recipe has {len(recipe.sources)}"
        )
    space, tasks = Space.read(recipe, parameters.space), tools.load_tasks()
    assert tasks is not None, "a search without tasks is refused before"
    objectives = read_objectives(parameters.objectives, tasks)
    limits = read_limits(parameters.constraints, tasks)
    sampler = open_sampler(
        parameters.sampler,
        space,
        parameters.seed,
        objectives=len(objectives),
        has_limits=bool(limits),
    )
    items = sum(part_sizes(tasks, "dev").values())
    parents = tools.score_parents(recipe)
    best_source = max(recipe.sources, key=lambda name: parents[name].merit)
    race = Race(
        shares=stages(items) if parameters.racing else (1.0,),
        margin=parameters.margin,
        alpha=ALPHA,
        objectives=objectives,
        limits=limits,
    )
    sources = {name: _stages(recipe, name, parents, race, tools) for name in recipe.sources}
    if limits:
        race.reference = (
            _stages(recipe, "base", parents, race, tools) if recipe.base else sources[best_source]
        )
    with _folder(recipe, tasks, tools) as folder:
        bench = Bench(tools, folder, race)
        study = Study(
            space=space,
            bench=bench,
            crew=Alone(bench),
            baselines=Baselines(
                space=space,
                bench=bench,
                log=log,
                parents=parents,
                sources={source_key(name): own for name, own in sources.items()},
            ),
            log=log,
            budget=read_budget(parameters.budget),
            items=items,
        )
        try:
            study.baselines.run()
            study.run_trials(sampler, parameters.completed(recipe).trials or TRIALS, [])
            study.keep(folder / "optuna.log")
        finally:
            bench.close()
    ranked = study.whole
    if not ranked:
        raise EvaluationError(
            "no candidate of the study has a finite score on dev, and keeps search.constraints "
            "where there are some, so none is the best; `mergeops compare` shows the parents"
        )
    lead = race.values_of(ranked[0].stages)
    is_beaten = any(
        mine > theirs
        for mine, theirs in zip(lead, race.values_of(sources[best_source]), strict=True)
    )
    trials = [run(_named(each), tools, search=log) for each in ranked[: parameters.keep]]
    found = report(study, trials, best_source)
    log_study(study, found, log)
    rows = [
        {"candidate": each.label, "answers": each.answers, **dev_columns(each.scores)}
        for each in ranked[:SHOWN]
    ]
    best = (trials[0] if len(objectives) > 1 else best_of(trials)) if is_beaten else None
    return SearchResult(best, None if best else best_source, trials, rows, report=found)


def _stages(
    recipe: Recipe, name: str, parents: Mapping[str, Scores], race: Race, tools: Tools
) -> Stages:
    """A parent's scores on the items of each stage; all of its answers are known."""
    return {
        share: parents[name] if share == 1 else tools.score_parent_prefix(recipe, name, share)
        for share in race.shares
    }


@contextmanager
def _folder(recipe: Recipe, tasks: TaskSet, tools: Tools) -> Iterator[Path]:
    """The study's own folder, named by recipe and questions, while no other process has it.

    How many trials there are, what may be spent and what is kept change no candidate: a study that
    is to be longer goes on.

    Raises:
        ConfigError: another process runs this study here.
    """
    asked = {name: task.digests["dev"] for name, task in tasks.tasks.items()}
    own = {**recipe.search.parameters, "trials": 0, "budget": "", "keep": 0}
    same = dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, parameters=own))
    text = json.dumps([same.sha256(), asked], sort_keys=True)
    folder = tools.work_dir / "studies" / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / "lock", wait=False):
            yield folder
    except BlockingIOError:
        raise ConfigError(
            f"another process runs this study in {folder}; wait for it, or take another "
            "search.seed or output.dir"
        ) from None


def _named(candidate: Candidate) -> Recipe:
    """The recipe of a candidate that becomes a trial."""
    return dataclasses.replace(candidate.recipe, name=candidate.label)
