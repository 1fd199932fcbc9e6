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
from mergeops.pipeline import Trial, best_of, run
from mergeops.recipe import Recipe
from mergeops.schema import check_choice, check_range
from mergeops.scores import Scores, compare
from mergeops.search.bench import Bench, Candidate
from mergeops.search.racing import Race, stages
from mergeops.search.space import Space, default_space
from mergeops.search.strategies import SearchResult, dev_columns, strategy
from mergeops.search.study import SAMPLERS, Study, open_sampler
from mergeops.tools import Tools
from mergeops.tracking import SearchRun

ALPHA = 0.05
"""Chance that racing drops the best of all although it leads by the margin."""
SHOWN = 10
"""Candidates in the table that a search ends with."""


@dataclass(frozen=True)
class OptunaParameters:
    """Parameters of ``optuna``."""

    trials: int = 32
    """Candidates that the sampler proposes, beside the baselines."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """Key -> [LOW, HIGH] or choices, e.g. {method: [linear, ties], sources.*.weight: [0.0, 1.0]};
    empty: method, weights and density."""
    sampler: str = "tpe"
    """tpe, gp (Gaussian process), cmaes (numbers only) or random."""
    racing: bool = True
    """Drop a candidate once it has lost; false asks every candidate everything."""
    margin: float = 0.01
    """A lead that matters: one that leads by less may be dropped."""
    keep: int = 1
    """How many of the best become trials with a checkpoint, a run and a version."""
    seed: int = 0
    """Of the sampler."""

    def __post_init__(self) -> None:
        check_range("search.trials", self.trials, 1, 100_000)
        check_range("search.margin", self.margin, 0.0, 1.0)
        check_range("search.keep", self.keep, 1, 100)
        check_range("search.seed", self.seed, 0, None)
        check_choice("search.sampler", self.sampler, SAMPLERS)

    def completed(self, recipe: Recipe) -> OptunaParameters:
        """With the space that a recipe gets by itself, where none is asked for."""
        return dataclasses.replace(self, space=dict(self.space) or default_space(recipe))


def _merges(recipe: Recipe, parameters: OptunaParameters) -> int:
    """At most: proposals, three baselines, the steps of the greedy soup, and the kept ones."""
    return parameters.trials + 3 + max(len(recipe.sources) - 1, 0) + parameters.keep


@strategy("optuna", trials=_merges)
def search(
    recipe: Recipe, parameters: OptunaParameters, tools: Tools, log: SearchRun
) -> SearchResult:
    """Run a study: baselines, then what the sampler proposes; the best become trials.

    A study that was killed goes on: it is gone through again, and what was scored is found.

    Raises:
        ConfigError: a space or a sampler that does not fit, or fewer than two sources.
        EvaluationError: no candidate has a finite score.
        MergeopsError: a baseline cannot be merged or scored.
    """
    if len(recipe.sources) < 2:
        raise ConfigError(
            f"optuna needs at least two sources to merge; the recipe has {len(recipe.sources)}"
        )
    space = Space.read(recipe, parameters.space)
    sampler = open_sampler(parameters.sampler, space, parameters.seed)
    parents = tools.score_parents(recipe)
    items = sum(task.n for task in next(iter(parents.values())).tasks.values())
    race = Race(stages(items) if parameters.racing else (1.0,), parameters.margin, ALPHA)
    with _folder(recipe, tools) as folder:
        bench = Bench(tools, folder, race)
        study = Study(space, bench, log)
        try:
            study.run_baselines(parents)
            study.run_trials(sampler, parameters.trials)
            study.keep(folder / "optuna.log")
        finally:
            bench.close()
    ranked = study.whole
    if not ranked:
        raise EvaluationError(
            "no candidate of the study has a finite score on dev, so none is the best; "
            "`mergeops compare` shows the parents"
        )
    best_source = max(recipe.sources, key=lambda name: parents[name].merit)
    is_beaten = ranked[0].scores.merit > parents[best_source].merit
    trials = [run(_named(each), tools, search=log) for each in ranked[: parameters.keep]]
    report = _report(study, trials, parents, best_source, items)
    log.log_json(report, "study.json")
    rows = [
        {"candidate": each.label, "answers": each.answers, **dev_columns(each.scores)}
        for each in ranked[:SHOWN]
    ]
    best = best_of(trials) if is_beaten else None
    return SearchResult(best, None if best else best_source, trials, rows, report=report)


@contextmanager
def _folder(recipe: Recipe, tools: Tools) -> Iterator[Path]:
    """The study's own folder, named by recipe and questions, while no other process has it.

    Raises:
        ConfigError: another process runs this study here.
    """
    tasks = tools.load_tasks()
    assert tasks is not None, "a search without tasks is refused before"
    asked = {name: task.digests["dev"] for name, task in tasks.tasks.items()}
    text = json.dumps([recipe.sha256(), asked], sort_keys=True)
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


def _report(
    study: Study,
    trials: list[Trial],
    parents: Mapping[str, Scores],
    best_source: str,
    items: int,
) -> dict[str, Any]:
    """What a study found and what it cost, as JSON types."""
    best = study.whole[0]
    against = {"best_source": parents[best_source]}
    against |= {name.replace(" ", "_"): c.scores for name, c in study.baselines.items()}
    asked = study.bench.cost.answers
    return {
        "space": [
            dataclasses.asdict(axis) | {"methods": sorted(axis.methods or ())}
            for axis in study.space.axes
        ],
        "baselines": {
            name: {
                "dev": scores.pooled,
                # Of the best candidate less this one, on the same items.
                "difference": (pair := compare(best.scores, scores)).difference,
                "interval": [pair.low, pair.high],
                "beaten": pair.low > 0,
            }
            for name, scores in against.items()
        },
        "candidates": [
            {
                "number": proposal.number,
                "values": dict(proposal.values),
                "answers": each.answers if (each := proposal.candidate) else 0,
                "dev": each.scores.pooled if each else None,
                "state": "failed" if not each else "whole" if each.is_whole else "dropped",
                "reason": proposal.reason or (f"{each.look}" if each and each.look else ""),
            }
            for proposal in study.proposals
        ],
        "cost": {
            "answers": asked,
            "full_evaluations": round(asked / items, 2),
            "merge_seconds": round(study.bench.cost.merge_seconds, 3),
            "evaluation_seconds": round(study.bench.cost.evaluation_seconds, 3),
        },
        "kept": [trial.run_id for trial in trials],
    }
