"""Read first: one trial, from recipe to registry.

    resolve -> plan -> merge -> score -> log -> register

Each step is skipped when its output exists already: merges are named by their plan digest, scores
by weights and questions, MLflow runs by the plan digest in a tag. So running anything twice is
safe, and a killed run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.checkpoint import is_adapter
from mergeops.evaluate import Agreement, TaskPlaces, read_passages, task_places
from mergeops.extraction import adapter_digest, base_of_adapter
from mergeops.planning import make_plan
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.report import Leaderboard, leaderboard_of, standing_of
from mergeops.scores import Scores
from mergeops.sources import Source
from mergeops.store import keep_seen
from mergeops.tools import Tools
from mergeops.tracking import (
    Beginning,
    FinishedTrial,
    SearchRun,
    Trial,
    TrialLine,
    log_leaderboard,
    log_search,
    log_unregistered,
    note_finished,
    open_trial,
    recall,
    register_trial,
    search_run,
)


@dataclass(frozen=True)
class Made:
    """A model, or an adapter, of which a trial is."""

    checkpoint: Path
    measures: Mapping[str, float] = field(default_factory=dict)
    """What its making measured, as metrics of the run."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """All of it as JSON types, kept as ``made.json``; nothing where it is but a merge."""


@dataclass(frozen=True, kw_only=True)
class TrialWork:
    """What a trial is of, and how it is made."""

    name: str
    digest: str
    """Names it: of the plan, or of what else decides it."""
    plan: Mapping[str, Any]
    """As JSON types, kept as ``plan.json``."""
    make: Callable[[], Made]
    """Makes it, or finds it made."""


def run(recipe: Recipe, tools: Tools, *, search: SearchRun | None = None) -> Trial:
    """Turn a recipe into a scored, registered checkpoint.

    Args:
        recipe: what to merge.
        tools: connections and caches, shared by all trials of a command.
        search: the search that this trial belongs to; its curves get the trial's score.

    Raises:
        MergeopsError: the class says at which step; finished steps are kept.
    """
    check_questions(recipe, tools)
    resolved = tools.resolve(recipe)
    if recipe.output.is_adapter:
        base_of_adapter(resolved.base)
    plan = make_plan(recipe, resolved.base, resolved.sources)
    tools.warn(plan)
    name = trial_name(recipe)

    def make() -> Made:
        if not recipe.output.is_adapter:
            return Made(tools.merge(plan, name))
        made = tools.merge_as_adapter(plan, resolved.base)
        return Made(made.out.absolute(), made.measures(), made.noted())

    digest = adapter_digest(plan) if recipe.output.is_adapter else plan.digest
    work = TrialWork(name=name, digest=digest, plan=plan.to_dict(), make=make)
    return track(recipe, tools, work, search=search)


def check_questions(recipe: Recipe, tools: Tools) -> None:
    """Load tasks and texts: one that cannot be read is refused before hours of work.

    Raises:
        MergeopsError: one cannot be.
    """
    tools.load_tasks()
    for text in recipe.evaluate.texts:
        read_passages(text)


def track(
    recipe: Recipe, tools: Tools, work: TrialWork, *, search: SearchRun | None = None
) -> Trial:
    """Make what a trial is of, score it and its parents, log and register it.

    Args:
        recipe: names the parents, and how to score and log.
        tools: as ``run``.
        work: what is made.
        search: as ``run``.

    Raises:
        MergeopsError: as ``run``.
    """
    resolved, name = tools.resolve(recipe), work.name
    with (
        open_trial(
            tools.tracking,
            recipe,
            work.digest,
            resolved.sources,
            resolved.base,
            plan=work.plan,
            name=name,
            parent_run_id=search.run_id if search else None,
        ) as log,
        tools.workers_into(log),
    ):
        made = work.make()
        checkpoint = made.checkpoint
        with tools.progress.bar(f"uploading {name}", is_bytes=True) as tick:
            sha256 = result_of(recipe, tools, checkpoint).sha256
            log.log_model(checkpoint, weights_sha256=sha256, progress=tick)
        # A local store has hard links to the files now, which counts as a change of them.
        result = result_of(recipe, tools, checkpoint)
        if made.details:
            log.log_measures(made.measures)
            log.log_json(made.details, "made.json")
        if note := log.flavour_note(checkpoint):
            tools.note(note)
        scores, board = None, None
        parents: dict[str, Scores] = {}
        if recipe.evaluate.tasks:
            parents = tools.score_parents(recipe, log=log.log_parent)
            scores = tools.score_source(name, recipe, result, "dev")
            log.log_scores(scores)
            board = leaderboard_of({name: scores}, parents)
            log_leaderboard(log, board, standing_of(scores, parents))
        agreements: list[Agreement] = []
        if recipe.evaluate.agreement is not None:
            agreements = tools.agreement(recipe, result)
            said = {"text": recipe.evaluate.agreement, "parents": [a.to_dict() for a in agreements]}
            log.log_text(json.dumps(said, indent=2), "agreement.json")
        if recipe.tracking.heat_maps and recipe.tool is None and not log.complete:
            for figure_name, figure in tools.heat_maps(recipe).items():
                log.log_figure(figure, f"plots/{figure_name}.png")
        version = None
        if scores is not None or recipe.tracking.register == "unscored":
            version = register_trial(log)
        else:
            log_unregistered(log)
    if log.run_id:
        # What is used again, as a source or to look at.
        uris = [f"models:/{recipe.tracking.registered_model}/{version}"] if version else []
        keep_seen(tools.tracking.uri, dict.fromkeys([*uris, f"runs:/{log.run_id}"], name))
    if search is not None and scores is not None:
        search.log_trial(scores.pooled, higher_is_better=scores.higher_is_better)
    return Trial(
        name=name,
        plan_digest=work.digest,
        run_id=log.run_id,
        checkpoint=checkpoint,
        registered=f"{recipe.tracking.registered_model}/{version}" if version else "",
        scores=scores,
        parents=parents,
        leaderboard=board,
        links=tools.tracking.links(log.run_id, recipe.tracking.registered_model, version),
        agreements=agreements,
    )


def result_of(recipe: Recipe, tools: Tools, path: Path, *, sha256: str | None = None) -> Source:
    """What a recipe made, pinned: a full checkpoint, or an adapter of the recipe's base.

    Args:
        recipe: made it.
        tools: its connections.
        path: its directory.
        sha256: of a full checkpoint's weights, where it is known.
    """
    if not is_adapter(path):
        return Source("result", str(path), path, sha256 or tools.weights_sha256(path))
    base = tools.resolve(recipe).base
    assert base is not None, "an adapter is made for a base"
    return tools.resolve_one(recipe, str(path), name="result", base=str(base.path))


def trial_name(recipe: Recipe) -> str:
    """The recipe's own name, else the method and the parameters that differ from its defaults."""
    parameters = recipe.method.parameters
    changed = [
        f"{f.name}={getattr(parameters, f.name)}"
        for f in dataclasses.fields(parameters)
        if getattr(parameters, f.name) != f.default
    ]
    name = recipe.name or " ".join([recipe.method.name, *changed])
    # On the leaderboard the merge stands beside its sources.
    return f"{name} (merge)" if name in recipe.sources else name


def joint_leaderboard(trials: Sequence[Trial]) -> Leaderboard:
    """All scored trials among all their parents; equal names are told apart by their plans."""
    merges: dict[str, Scores] = {}
    parents: dict[str, Scores] = {}
    for trial, label in zip(trials, _labels(trials), strict=True):
        if trial.scores is not None:
            merges[label] = trial.scores
            parents |= trial.parents
    return leaderboard_of(merges, parents)


def log_search_page(log: SearchRun, trials: Sequence[Trial]) -> None:
    """Log what a search's page shows: curves, pictures, leaderboard, text; none without scores."""
    lines = [
        TrialLine(label, trial.run_id, trial.registered)
        for trial, label in zip(trials, _labels(trials), strict=True)
        if trial.scores is not None
    ]
    directions = [trial.scores.higher_is_better for trial in trials if trial.scores is not None]
    if lines:
        log_search(log, lines, joint_leaderboard(trials), directions[0])


def _labels(trials: Sequence[Trial]) -> list[str]:
    names = Counter(trial.name for trial in trials)
    return [f"{t.name} ({t.plan_digest[:6]})" if names[t.name] > 1 else t.name for t in trials]


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best dev score, the first of equals; None where none is finite."""
    best = max(trials, key=lambda trial: trial.merit, default=None)
    return best if best is not None and math.isfinite(best.merit) else None


def _found_or_run(recipe: Recipe, progress: Progress) -> Trial:
    """A trial that is known to be finished, without a library that it took; else run it."""
    beginning = Beginning(recipe)
    known = recall(beginning)
    if known is not None:
        for note in known["notes"]:
            progress.step(f"note: {note}")
        progress.step("nothing to do: the trial is finished, and what it is made of is as it was")
        return Trial.from_note(known)
    tools = Tools(recipe, progress)
    trial = run(recipe, tools)
    tasks = tools.load_tasks()
    places = task_places(tasks) if tasks else TaskPlaces()
    if trial.run_id and places is not None:
        name, _, version = trial.registered.rpartition("/")
        finished = FinishedTrial(
            result={**trial.note(), "notes": tools.notes},
            run_id=trial.run_id,
            version=(name, int(version)) if version else None,
            resolved=tools.resolve(recipe),
            task_places=[*places.files, *recipe.evaluate.texts],
            hub_data=places.hub,
            checkpoint=trial.checkpoint,
        )
        note_finished(beginning, finished)
    return trial


def run_all(recipes: Sequence[Recipe], progress: Progress, *, name: str) -> list[Trial]:
    """Run several recipes; more than one are nested below one sweep run in MLflow.

    Args:
        recipes: at least one; the first one's tracking and evaluate settings hold for all.
        name: of the sweep.
    """
    if len(recipes) == 1:
        return [_found_or_run(recipes[0], progress)]
    tools = Tools(recipes[0], progress)
    digest = hashlib.sha256("".join(recipe.sha256() for recipe in recipes).encode()).hexdigest()
    with search_run(tools.tracking, name, digest, {"trials": len(recipes)}) as sweep:
        with tools.workers_into(sweep):
            tools.do_ahead(recipes)
        trials = [run(recipe, tools, search=sweep) for recipe in recipes]
        best = best_of(trials)
        if best is not None and best.scores is not None:
            sweep.log_best(best.run_id, best.scores)
            log_search_page(sweep, trials)
    return trials
