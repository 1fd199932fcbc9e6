"""Read first: one trial, from recipe to registry.

    resolve -> plan -> merge -> score -> log -> register

Each step is skipped when its output exists already: merges are named by their plan digest, scores
by weights and questions, MLflow runs by the plan digest in a tag. So running anything twice is
safe, and a killed run goes on where it was.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.plan import make_plan
from mergeops.recipe import Recipe
from mergeops.tools import Tools

if TYPE_CHECKING:
    from mergeops.evaluate import Scores
    from mergeops.report.leaderboard import Leaderboard


@dataclass(frozen=True)
class Trial:
    """One scored recipe."""

    name: str
    plan_digest: str
    run_id: str
    checkpoint: Path
    registered: str
    """NAME/VERSION in the model registry."""
    scores: Scores | None
    """On the dev part; None where the recipe names no tasks."""
    leaderboard: Leaderboard | None
    """The merge among its parents."""

    @property
    def dev_score(self) -> float:
        """Pooled score on the dev part; NaN where nothing was scored."""
        return self.scores.pooled if self.scores else float("nan")


def run(recipe: Recipe, tools: Tools, *, parent_run_id: str | None = None) -> Trial:
    """Turn a recipe into a scored, registered checkpoint.

    Args:
        recipe: what to merge.
        tools: connections and caches, shared by all trials of a command.
        parent_run_id: the MLflow run of the search that this trial belongs to.

    Raises:
        MergeopsError: the class says at which step; finished steps are kept.
    """
    tools.load_tasks()
    resolved = tools.resolve(recipe)
    plan = make_plan(recipe, resolved.base, resolved.sources)
    name = recipe.name or default_name(recipe)
    with tools.tracking.trial(
        recipe, plan, resolved, name=name, parent_run_id=parent_run_id
    ) as log:
        checkpoint = tools.merge(plan, name)
        log.log_model(checkpoint)
        scores, board = None, None
        if recipe.evaluate.tasks:
            parents = tools.score_parents(recipe)
            scores = tools.score(name, checkpoint, "dev")
            log.log_scores(scores)
            board = leaderboard_of(name, scores, parents)
            log.log_report(board)
        version = log.register()
    return Trial(
        name=name,
        plan_digest=plan.digest,
        run_id=log.run_id,
        checkpoint=checkpoint,
        registered=f"{recipe.tracking.registered_model}/{version}",
        scores=scores,
        leaderboard=board,
    )


def default_name(recipe: Recipe) -> str:
    """The method and the parameters that differ from its defaults."""
    parameters = recipe.method.parameters
    changed = [
        f"{f.name}={getattr(parameters, f.name)}"
        for f in dataclasses.fields(parameters)
        if getattr(parameters, f.name) != f.default
    ]
    return " ".join([recipe.method.name, *changed])


def leaderboard_of(name: str, scores: Scores, parents: dict[str, Scores]) -> Leaderboard:
    """The merge among its parents, each compared with the best parent."""
    from mergeops.report.leaderboard import Entry, leaderboard

    entries = [
        Entry(parent, "base" if parent == "base" else "source", parent_scores)
        for parent, parent_scores in parents.items()
    ]
    return leaderboard([*entries, Entry(name, "merge", scores)])


def plain(trial: Trial) -> dict[str, Any]:
    """A trial as JSON types, for ``--json``."""
    return {
        "name": trial.name,
        "plan_digest": trial.plan_digest,
        "run_id": trial.run_id,
        "checkpoint": str(trial.checkpoint),
        "registered": trial.registered,
        "dev_score": trial.dev_score if trial.scores else None,
        "leaderboard": trial.leaderboard.to_dict() if trial.leaderboard else None,
    }
