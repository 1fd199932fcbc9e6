"""From a space and a sampler to a search's result: what every strategy that is a study shares."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.checkpoint import locked
from mergeops.errors import ConfigError, EvaluationError
from mergeops.evaluate import TaskSet, part_sizes, pick_devices, task_files
from mergeops.executors import Needs, open_executor
from mergeops.pipeline import best_of, run
from mergeops.recipe import Recipe
from mergeops.scores import Scores
from mergeops.search.baselines import Baselines, source_key
from mergeops.search.bench import Bench, Candidate, Cost
from mergeops.search.crew import REFERENCE, Workers
from mergeops.search.earlier import first_trials
from mergeops.search.joining import Board, Together, leading
from mergeops.search.objectives import Limit, Objective
from mergeops.search.racing import Race, Stages, stages
from mergeops.search.space import Choices
from mergeops.search.spending import Budget
from mergeops.search.strategies import SearchResult, dev_columns
from mergeops.search.study import Study
from mergeops.search.study_page import log_study
from mergeops.search.study_report import report
from mergeops.tools import Tools
from mergeops.tracking import SearchRun

ALPHA = 0.05
"""Chance that racing drops the best of all although it leads by the margin."""
SHOWN = 10
"""Candidates in the table that a search ends with."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How a study is run."""

    trials: int
    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...] = ()
    budget: Budget = field(default_factory=Budget)
    racing: bool = True
    margin: float = 0.01
    keep: int = 1
    earlier: int = 0
    """So many of the best candidates of an earlier study are tried first."""
    first: tuple[Mapping[str, Any], ...] = ()
    """Values that are tried before the sampler's own."""
    checkpoints: tuple[str, ...] = ()
    """The sources, oldest first, where they are checkpoints of one run: the means of the last ones
    are baselines."""


def check_sources(strategy: str, recipe: Recipe) -> None:
    """Refuse a recipe with nothing to merge.

    Raises:
        ConfigError: fewer than two sources.
    """
    if len(recipe.sources) < 2:
        raise ConfigError(
            f"{strategy} needs at least two sources to merge; the recipe has {len(recipe.sources)}"
        )


def run_study(
    recipe: Recipe,
    space: Choices,
    sampler: Any,
    settings: StudySettings,
    tools: Tools,
    log: SearchRun,
) -> SearchResult:
    """Run a study and turn its best candidates into trials.

    Where another command runs it, this one helps, and then goes through what was found.

    Args:
        recipe: what candidates vary.
        space: what they are chosen from.
        sampler: Optuna's, by which they are.
        settings: how.
        tools: shared by all.
        log: the search's run in MLflow.

    Raises:
        ConfigError: another command runs this study, with workers of its own.
        EvaluationError: no candidate has a finite score, or none keeps the limits.
        MergeopsError: a baseline cannot be merged or scored.
    """
    tasks = tools.load_tasks()
    assert tasks is not None, "a search without tasks is refused before"
    folder = _folder(recipe, tasks, tools)
    is_alone = recipe.executor.is_here and len(pick_devices(recipe.evaluate.device)) == 1
    with leading(folder, tools.progress) if is_alone else _locked(folder):
        items = sum(part_sizes(tasks, "dev").values())
        parents = tools.score_parents(recipe)
        best_source = max(recipe.sources, key=lambda name: parents[name].merit)
        race = Race(
            shares=stages(items) if settings.racing else (1.0,),
            margin=settings.margin,
            alpha=ALPHA,
            objectives=settings.objectives,
            limits=settings.limits,
        )
        sources = {name: _stages(recipe, name, parents, race, tools) for name in recipe.sources}
        if settings.limits:
            race.reference = (
                _stages(recipe, "base", parents, race, tools)
                if recipe.base
                else sources[best_source]
            )
        with ExitStack() as opened:
            bench = Bench(tools, folder, race)
            opened.callback(bench.close)
            # Whoever else tries out candidates finds there what a race is led by.
            for name, own in sources.items():
                bench.keep(source_key(name), own, Cost())
            if race.limits:
                bench.keep(REFERENCE, race.reference, Cost())
            together = Together(bench, Board(folder)) if is_alone else None
            study = Study(
                space=space,
                bench=bench,
                crew=together or _workers(recipe, bench, opened),
                baselines=Baselines(
                    space=space,
                    bench=bench,
                    log=log,
                    parents=parents,
                    checkpoints=settings.checkpoints,
                    sources={source_key(name): own for name, own in sources.items()},
                ),
                log=log,
                budget=settings.budget,
                items=items,
            )
            study.baselines.run()
            first = list(settings.first)
            if settings.earlier:
                first += first_trials(recipe, space, settings.earlier, tools, log, folder)
            study.run_trials(sampler, settings.trials, first)
            study.keep(folder / "optuna.log")
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
        trials = [run(_named(each), tools, search=log) for each in ranked[: settings.keep]]
        found = report(study, trials, best_source)
        log_study(study, found, log)
        rows = [
            {"candidate": each.label, "answers": each.answers, **dev_columns(each.scores)}
            for each in ranked[:SHOWN]
        ]
        best = trials[0] if len(settings.objectives) > 1 else best_of(trials)
        best = best if is_beaten else None
        return SearchResult(best, None if best else best_source, trials, rows, report=found)


def _workers(recipe: Recipe, bench: Bench, opened: ExitStack) -> Workers:
    """Those of the recipe's executor."""
    needs = Needs(
        digests=task_files(recipe.evaluate), shared=(str(bench.tools.work_dir.absolute()),)
    )
    return Workers(bench, opened.enter_context(open_executor(recipe.executor, needs)))


def _stages(
    recipe: Recipe, name: str, parents: Mapping[str, Scores], race: Race, tools: Tools
) -> Stages:
    """A parent's scores on the items of each stage; all of its answers are known."""
    return {
        share: parents[name] if share == 1 else tools.score_parent_prefix(recipe, name, share)
        for share in race.shares
    }


def _folder(recipe: Recipe, tasks: TaskSet, tools: Tools) -> Path:
    """The study's own folder, named by recipe and questions.

    How many trials there are, what may be spent and what is kept change no candidate: a study that
    is to be longer goes on.
    """
    asked = {name: task.digests["dev"] for name, task in tasks.tasks.items()}
    length = {"trials": 0, "budget": "", "keep": 0}
    own = {**recipe.search.parameters, **length}
    same = dataclasses.replace(recipe, search=dataclasses.replace(recipe.search, parameters=own))
    text = json.dumps([same.sha256(), asked], sort_keys=True)
    folder = tools.work_dir / "studies" / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Have a study's folder, as long as no other process has it.

    Raises:
        ConfigError: another process runs this study here.
    """
    try:
        with locked(folder / "lock", wait=False):
            yield
    except BlockingIOError:
        raise ConfigError(
            f"another process runs this study in {folder}; wait for it, or take another "
            "search.seed or output.dir; a command without executor.workers would help it"
        ) from None


def _named(candidate: Candidate) -> Recipe:
    """The recipe of a candidate that becomes a trial."""
    return dataclasses.replace(candidate.recipe, name=candidate.label)
