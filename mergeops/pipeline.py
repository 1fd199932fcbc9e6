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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.evaluate import Agreement, TaskPlaces, read_passages, task_places
from mergeops.planning import make_plan
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.report import Leaderboard, Standing, leaderboard_of, standing_of
from mergeops.scores import Scores, estimate
from mergeops.store import flavour_of, keep_seen
from mergeops.tools import Tools
from mergeops.tracking import (
    Beginning,
    FinishedTrial,
    SearchRun,
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


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One scored recipe."""

    name: str
    plan_digest: str
    run_id: str
    """Empty where the trial is kept for ``mergeops sync``."""
    checkpoint: Path
    registered: str
    """NAME/VERSION in the model registry; empty where the trial is kept for ``mergeops sync``, or
    has no scores and ``tracking.register`` does not ask for a version all the same."""
    scores: Scores | None
    """On the dev part; None where the recipe names no tasks."""
    parents: Mapping[str, Scores]
    """Of the base and every source, on the dev part."""
    leaderboard: Leaderboard | None
    """The merge among its parents."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Pages in MLflow: ``run``, and ``version`` where there is one; empty where none serves any."""
    agreements: Sequence[Agreement] = ()
    """With base and sources, where ``evaluate.agreement`` names a text."""

    @property
    def dev_score(self) -> float:
        """Pooled score on the dev part; NaN where nothing was scored."""
        return self.scores.pooled if self.scores else float("nan")

    @property
    def merit(self) -> float:
        """What choices are made by, larger is better; -inf where there is no finite score."""
        return self.scores.merit if self.scores else -math.inf

    @property
    def standing(self) -> Standing | None:
        """Whether it is better than its best parent and its base; None where nothing was scored."""
        return standing_of(self.scores, self.parents) if self.scores else None

    def note(self) -> dict[str, Any]:
        """All of it as JSON types, for ``from_note``."""
        return {
            "name": self.name,
            "plan_digest": self.plan_digest,
            "run_id": self.run_id,
            "checkpoint": str(self.checkpoint),
            "registered": self.registered,
            "scores": self.scores.to_dict() if self.scores else None,
            "parents": {name: scores.to_dict() for name, scores in self.parents.items()},
            "links": dict(self.links),
            "agreements": [each.to_dict() for each in self.agreements],
        }

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> Trial:
        """The trial that ``note`` wrote down."""
        scores = Scores.from_dict(note["scores"]) if note["scores"] else None
        parents = {name: Scores.from_dict(each) for name, each in note["parents"].items()}
        return cls(
            name=note["name"],
            plan_digest=note["plan_digest"],
            run_id=note["run_id"],
            checkpoint=Path(note["checkpoint"]),
            registered=note["registered"],
            scores=scores,
            parents=parents,
            leaderboard=leaderboard_of({note["name"]: scores}, parents) if scores else None,
            links=note["links"],
            agreements=[Agreement(**each) for each in note["agreements"]],
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for ``--json``."""
        standing = self.standing
        interval = estimate(self.scores).interval if self.scores else None
        return {
            "name": self.name,
            "plan_digest": self.plan_digest,
            "run_id": self.run_id,
            "checkpoint": str(self.checkpoint),
            "registered": self.registered,
            "dev_score": self.dev_score if math.isfinite(self.dev_score) else None,
            "dev_interval": list(interval) if interval else None,
            "links": dict(self.links),
            "standing": standing.to_dict() if standing else None,
            "agreements": [each.to_dict() for each in self.agreements],
            "leaderboard": self.leaderboard.to_dict() if self.leaderboard else None,
        }


def run(recipe: Recipe, tools: Tools, *, search: SearchRun | None = None) -> Trial:
    """Turn a recipe into a scored, registered checkpoint.

    Args:
        recipe: what to merge.
        tools: connections and caches, shared by all trials of a command.
        search: the search that this trial belongs to; its curves get the trial's score.

    Raises:
        MergeopsError: the class says at which step; finished steps are kept.
    """
    # A task or text that cannot be read is refused before hours of merging.
    tools.load_tasks()
    for text in recipe.evaluate.texts:
        read_passages(text)
    resolved = tools.resolve(recipe)
    plan = make_plan(recipe, resolved.base, resolved.sources)
    tools.warn(plan)
    name = trial_name(recipe)
    with open_trial(
        tools.tracking,
        recipe,
        plan.digest,
        resolved.sources,
        resolved.base,
        plan=plan.to_dict(),
        name=name,
        parent_run_id=search.run_id if search else None,
    ) as log:
        checkpoint = tools.merge(plan, name)
        with tools.progress.bar(f"uploading {name}", is_bytes=True) as tick:
            sha256 = tools.weights_sha256(checkpoint)
            log.log_model(checkpoint, weights_sha256=sha256, progress=tick)
        if note := flavour_of(checkpoint).note:
            tools.note(note)
        scores, board = None, None
        parents: dict[str, Scores] = {}
        if recipe.evaluate.tasks:
            parents = tools.score_parents(recipe, log=log.log_parent)
            scores = tools.score(name, checkpoint, "dev")
            log.log_scores(scores)
            board = leaderboard_of({name: scores}, parents)
            log_leaderboard(log, board, standing_of(scores, parents))
        agreements: list[Agreement] = []
        if recipe.evaluate.agreement is not None:
            agreements = tools.agreement(recipe, checkpoint)
            said = {"text": recipe.evaluate.agreement, "parents": [a.to_dict() for a in agreements]}
            log.log_text(json.dumps(said, indent=2), "agreement.json")
        if recipe.tracking.heat_maps and not log.complete:
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
        plan_digest=plan.digest,
        run_id=log.run_id,
        checkpoint=checkpoint,
        registered=f"{recipe.tracking.registered_model}/{version}" if version else "",
        scores=scores,
        parents=parents,
        leaderboard=board,
        links=tools.tracking.links(log.run_id, recipe.tracking.registered_model, version),
        agreements=agreements,
    )


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
    tools.do_ahead(recipes)
    digest = hashlib.sha256("".join(recipe.sha256() for recipe in recipes).encode()).hexdigest()
    with search_run(tools.tracking, name, digest, {"trials": len(recipes)}) as sweep:
        trials = [run(recipe, tools, search=sweep) for recipe in recipes]
        best = best_of(trials)
        if best is not None and best.scores is not None:
            sweep.log_best(best.run_id, best.scores)
            log_search_page(sweep, trials)
    return trials
