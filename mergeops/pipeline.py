"""Read first: one trial, from recipe to registry.

    resolve -> plan -> merge -> score -> log -> register

Each step is skipped when its output exists already: merges are named by their plan digest, scores
by weights and questions, MLflow runs by the plan digest in a tag. So running anything twice is
safe, and a killed run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mergeops.merges_first import Digests, merge_dir, resolve_with_merges
from mergeops.plan import Plan, make_plan
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.tools import Tools

if TYPE_CHECKING:
    from mergeops.evaluate import Scores
    from mergeops.report.leaderboard import Leaderboard
    from mergeops.sources import Resolved
    from mergeops.tracking.search_run import SearchRun


@dataclass(frozen=True)
class Trial:
    """One scored recipe."""

    name: str
    plan_digest: str
    run_id: str
    """Empty where the trial is kept for ``mergeops sync``."""
    checkpoint: Path
    registered: str
    """NAME/VERSION in the model registry; empty where the trial is kept for ``mergeops sync``."""
    scores: Scores | None
    """On the dev part; None where the recipe names no tasks."""
    parents: Mapping[str, Scores]
    """Of the base and every source, on the dev part."""
    leaderboard: Leaderboard | None
    """The merge among its parents."""

    @property
    def dev_score(self) -> float:
        """Pooled score on the dev part; NaN where nothing was scored."""
        return self.scores.pooled if self.scores else float("nan")

    @property
    def merit(self) -> float:
        """What choices are made by, larger is better; -inf where there is no finite score."""
        return self.scores.merit if self.scores else -math.inf

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for ``--json``."""
        from mergeops.evaluate.intervals import estimate

        interval = estimate(self.scores).interval if self.scores else None
        return {
            "name": self.name,
            "plan_digest": self.plan_digest,
            "run_id": self.run_id,
            "checkpoint": str(self.checkpoint),
            "registered": self.registered,
            "dev_score": self.dev_score if math.isfinite(self.dev_score) else None,
            "dev_interval": list(interval) if interval else None,
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
    tools.load_tasks()
    resolved = tools.resolve(recipe)
    plan = make_plan(recipe, resolved.base, resolved.sources)
    tools.warn(plan)
    name = recipe.name or default_name(recipe)
    if name in recipe.sources:
        name = f"{name} (merge)"
    parent_run_id = search.run_id if search else None
    with tools.tracking.trial(
        recipe, plan, resolved, name=name, parent_run_id=parent_run_id
    ) as log:
        checkpoint = tools.merge(plan, name)
        with tools.progress.bar(f"uploading {name}", is_bytes=True) as tick:
            log.log_model(
                checkpoint, weights_sha256=tools.weights_sha256(checkpoint), progress=tick
            )
        scores, board = None, None
        parents: dict[str, Scores] = {}
        if recipe.evaluate.tasks:
            parents = tools.score_parents(recipe, log=log.log_parent)
            scores = tools.score(name, checkpoint, "dev")
            log.log_scores(scores)
            board = leaderboard_of({name: scores}, parents)
            log.log_report(board)
        if recipe.tracking.heat_maps and not log.complete:
            for figure_name, figure in tools.heat_maps(recipe).items():
                log.log_figure(figure, f"plots/{figure_name}.png")
        version = log.register()
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


def leaderboard_of(merges: Mapping[str, Scores], parents: Mapping[str, Scores]) -> Leaderboard:
    """Merges among their parents, each compared with the best parent."""
    from mergeops.report.leaderboard import Entry, leaderboard

    entries = [
        Entry(parent, "base" if parent == "base" else "source", scores)
        for parent, scores in parents.items()
    ]
    return leaderboard([*entries, *(Entry(name, "merge", s) for name, s in merges.items())])


def joint_leaderboard(trials: Sequence[Trial]) -> Leaderboard:
    """All scored trials among all their parents; equal names are told apart by their plans."""
    merges: dict[str, Scores] = {}
    parents: dict[str, Scores] = {}
    for label, trial in _labelled(trials):
        if trial.scores is not None:
            merges[label] = trial.scores
            parents |= trial.parents
    return leaderboard_of(merges, parents)


def log_search_page(log: SearchRun, trials: Sequence[Trial]) -> None:
    """Log what a search's page shows: curves, pictures, leaderboard, text; none without scores."""
    from mergeops.report.search_page import TrialLine, log_search

    scored = [(label, trial) for label, trial in _labelled(trials) if trial.scores is not None]
    if scored:
        lines = [TrialLine(label, trial.run_id, trial.registered) for label, trial in scored]
        first = scored[0][1].scores
        is_higher_better = first is not None and first.higher_is_better
        log_search(log, lines, joint_leaderboard(trials), is_higher_better)


def _labelled(trials: Sequence[Trial]) -> list[tuple[str, Trial]]:
    names = Counter(trial.name for trial in trials)
    return [(f"{t.name} ({t.plan_digest[:6]})" if names[t.name] > 1 else t.name, t) for t in trials]


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best dev score, the first of equals; None where none is finite."""
    best = max(trials, key=lambda trial: trial.merit, default=None)
    return best if best is not None and math.isfinite(best.merit) else None


def run_all(recipes: Sequence[Recipe], progress: Progress, *, name: str) -> list[Trial]:
    """Run several recipes; more than one are nested below one sweep run in MLflow.

    Args:
        recipes: at least one; the first one's tracking and evaluate settings hold for all.
        name: of the sweep.
    """
    tools = Tools(recipes[0], progress)
    if len(recipes) == 1:
        return [run(recipes[0], tools)]
    digest = hashlib.sha256("".join(recipe.sha256() for recipe in recipes).encode()).hexdigest()
    with tools.tracking.search(name, digest, {"trials": len(recipes)}) as sweep:
        trials = [run(recipe, tools, search=sweep) for recipe in recipes]
        best = best_of(trials)
        if best is not None and best.scores is not None:
            sweep.log_best(best.run_id, best.scores)
            log_search_page(sweep, trials)
    return trials


class Merged(NamedTuple):
    """What ``merge_only`` did."""

    plan: Plan
    was_there: bool
    """Whether the merge was in the directory already; its bytes were not read again."""


def merge_only(recipe: Recipe, out: Path, progress: Progress) -> Merged:
    """Merge into a directory of the user's; nothing is scored or tracked."""
    from mergeops.destination import check_output
    from mergeops.execute import merge
    from mergeops.sources import resolve

    work_dir = Path(recipe.output.dir)

    def find(one: Recipe, digests: Digests) -> Resolved:
        with progress.bar("reading sources", is_bytes=True) as tick:
            return resolve(
                one,
                cache_dir=work_dir / "cache",
                digests=digests,
                progress=lambda _label, done, total: tick(done, total),
            )

    def execute(plan: Plan, label: str, into: Path) -> Path:
        for warning in plan.warnings:
            progress.step(f"note: {warning}")
        with progress.bar(f"merging {label}", is_bytes=True) as tick:
            return merge(plan, into, device=recipe.output.device, progress=tick)

    before = check_output(out)
    resolved = resolve_with_merges(
        recipe, find, lambda plan, name: execute(plan, name, merge_dir(work_dir, plan))
    )
    plan = make_plan(recipe, resolved.base, resolved.sources)
    execute(plan, f"into {out}", out)
    # Another merge would have been refused.
    return Merged(plan, before is not None)
