"""What the trials of one command share: connections, loaded tasks, caches, progress.

Every method here finds finished work first: merged plans, answers, hashed sources.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.checkpoint import weights_sha256
from mergeops.engine import SCORING, files_of, merge, note_pace
from mergeops.evaluate import (
    Agreement,
    Model,
    Seat,
    TaskSet,
    agreement,
    check_clusters,
    check_directions,
    load_tasks,
    score_all,
    task_files,
    with_clusters,
)
from mergeops.executors import Desk, Needs, Unit, WorkLog, open_executor, results
from mergeops.extraction import check_made_here
from mergeops.inspection import Inspection, figures, inspect
from mergeops.planning import Plan, make_plan, merge_dir
from mergeops.progress import Progress
from mergeops.recipe import EvaluateSpec, Recipe
from mergeops.schema import build
from mergeops.scores import Scores
from mergeops.sources import Source
from mergeops.store import Tracking, connect
from mergeops.tracking import LoggedRun, ScoreRecords, log_parent
from mergeops.workshop import Workshop

MERGE_AND_SCORE = "mergeops.tools:merge_and_score"

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tools(Workshop):
    """A workshop that also scores and tracks: loaded tasks, the connection, the experiment.

    Args:
        recipe: its tracking, evaluate, output and path settings hold for all trials.
        progress: where to show what is being done.
        tracking: a connection to share; None makes one.
    """

    def __init__(
        self, recipe: Recipe, progress: Progress, *, tracking: Tracking | None = None
    ) -> None:
        check_made_here(recipe)
        super().__init__(recipe, progress)
        self.evaluate = recipe.evaluate
        self.trust_remote_code = recipe.trust_remote_code
        self.tracking = tracking or connect(recipe.tracking)
        self._tasks: TaskSet | None = None
        self._asked_by_workers: set[tuple[str, str]] = set()
        self._work_log = WorkLog()
        self._asked_here: set[str] = set()
        self._prefixes: dict[float, TaskSet] = {}
        self._inspections: dict[tuple[str, ...], Inspection] = {}

    def load_tasks(self) -> TaskSet | None:
        """Load and check the tasks once, before any model is touched; None where there are none."""
        if self._tasks is None and self.evaluate.tasks:
            self._tasks = load_tasks(self.evaluate)
            check_clusters(self._tasks)
            check_directions(self._tasks)
        return self._tasks

    def score(
        self,
        label: str,
        path: Path,
        part: str,
        *,
        sha256: str | None = None,
        tokenizer: Path | None = None,
    ) -> Scores:
        """Score a full checkpoint on one part of the tasks, or find it scored."""
        model = Model(path, sha256 or self.weights_sha256(path), tokenizer)
        [scores] = self.score_all({label: model}, part)
        return scores

    def score_all(self, models: Mapping[str, Model], part: str) -> list[Scores]:
        """Score full checkpoints on one part of the tasks, on all devices, or find them scored.

        Args:
            models: by the names that progress calls them by.
        """
        if not self.executor.is_here and self.evaluate.tasks:
            self._have_done([self._scoring(name, m, part) for name, m in models.items()], part)
        return self._score(models, part, self.load_tasks(), ScoreRecords(self.tracking))

    def do_ahead(self, recipes: Sequence[Recipe]) -> None:
        """Have workers merge and score what the trials of these recipes need, and their parents,
        where the recipe names workers; the trials then find it done.

        Raises:
            ConfigError: workers cannot be had, or are not as they have to be.
            MergeopsError: as a trial; what is done is kept.
        """
        if self.executor.is_here:
            return
        self.load_tasks()
        wanted: dict[str, Unit] = {}
        files: dict[str, int] = {}
        for recipe in recipes:
            resolved = self.resolve(recipe)
            plan = make_plan(recipe, resolved.base, resolved.sources)
            self.warn(plan)
            files |= files_of(plan)
            result = Model(merge_dir(self.work_dir, plan).absolute(), "")
            wanted.setdefault(plan.digest, self._scoring(plan.digest[:8], result, "dev", plan))
            for name, source in (resolved.parents if self.evaluate.tasks else {}).items():
                if source.sha256 not in wanted:
                    model = self._model(recipe, source)
                    wanted[source.sha256] = self._scoring(name, model, "dev")
        self._have_done(list(wanted.values()), "dev", files)

    def _scoring(self, label: str, model: Model, part: str, plan: Plan | None = None) -> Unit:
        """A unit that scores a model, which it makes first where it has a plan."""
        payload = {
            "model": str(model.path.absolute()),
            "sha256": model.weights_sha256,
            "tokenizer": str(model.tokenizer.absolute()) if model.tokenizer else None,
            "plan": plan.to_dict() if plan else None,
            "device": self.device,
            "evaluate": dataclasses.asdict(self.evaluate),
            "part": part,
            "work_dir": str(self.work_dir.absolute()),
            "trust_remote_code": self.trust_remote_code,
        }
        return Unit.of(MERGE_AND_SCORE, payload, f"{'merging' if plan else 'scoring'} {label}")

    def _have_done(
        self, units: Sequence[Unit], part: str, files: Mapping[str, int] | None = None
    ) -> None:
        new = [u for u in units if (u.payload["sha256"], part) not in self._asked_by_workers]
        if not new:
            return
        self.work_dir.mkdir(parents=True, exist_ok=True)
        needs = Needs(
            files=dict(files or {}),
            digests=task_files(self.evaluate),
            shared=(str(self.work_dir.absolute()),),
        )
        label = f"{len(new)} units on {self.executor.name}"
        with self.progress.bar(label) as tick, open_executor(self.executor, needs) as executor:
            ends = results(executor, new, progress=self.progress, tell=self._work_log.note)
            for done, ended in enumerate(ends, start=1):
                self._asked_by_workers.add((ended.result["sha256"], part))
                tick(done, len(new))

    def workers_into(self, log: LoggedRun) -> AbstractContextManager[None]:
        """Log who did which unit in the block when, and what units said that failed: to
        workers.json and failed/UNIT.log of a trial or a sweep."""
        self._work_log = WorkLog()
        return self._work_log.told_to(log.log_work)

    def _score(
        self,
        models: Mapping[str, Model],
        part: str,
        tasks: TaskSet | None,
        shared: ScoreRecords | None,
        seat: Seat | None = None,
    ) -> list[Scores]:
        numbers = {id(model): i for i, model in enumerate(models.values(), 1)}
        names = {id(model): name for name, model in models.items()}

        asked: list[Model] = []
        counts: list[int] = []
        began = time.monotonic()

        def begin(model: Model) -> None:
            asked.append(model)
            count = f" ({numbers[id(model)]} of {len(models)})" if len(models) > 1 else ""
            tick.rename(f"scoring {names[id(model)]}{count}")

        with self.progress.bar(f"scoring {', '.join(models)}") as tick:
            scores = score_all(
                list(models.values()),
                tasks.spec if tasks else self.evaluate,
                part,
                work_dir=self.work_dir,
                tasks=tasks,
                shared=shared,
                trust_remote_code=self.trust_remote_code,
                progress=lambda _task, done, total: tick(done, total),
                begin=begin,
                count=counts.append,
                seat=seat,
            )
        if counts:
            self._note_scoring(asked, sum(counts), time.monotonic() - began)
        return [with_clusters(each, tasks) for each in scores] if tasks else scores

    def prefix(self, share: float) -> TaskSet:
        """The tasks with the first share of each one's items, which a larger share has, too."""
        whole = self.load_tasks()
        assert whole is not None, "a search without tasks is refused before"
        if share == 1:
            return whole
        if share not in self._prefixes:
            limit = self.evaluate.limit
            limit = math.ceil(limit * share) if isinstance(limit, int) else share * (limit or 1)
            tasks = load_tasks(dataclasses.replace(self.evaluate, limit=limit))
            self._prefixes[share] = dataclasses.replace(tasks, encodings=whole.encodings)
        return self._prefixes[share]

    def score_prefix(self, label: str, model: Model, share: float, seat: Seat) -> Scores:
        """Score a model on the first share of each task's dev items, asking only new ones.

        The scores are kept on this machine only.
        """
        [scores] = self._score({label: model}, "dev", self.prefix(share), None, seat)
        return scores

    def score_parent_prefix(self, recipe: Recipe, name: str, share: float) -> Scores:
        """Scores of a source, or of ``base``, on the first share of the items; after
        ``score_parents`` nothing is asked."""
        resolved = self.resolve(recipe)
        source = resolved.sources.get(name) or resolved.base
        assert source is not None, "nobody asks for a base that is not there"
        model = self._model(recipe, source)
        [scores] = self._score({name: model}, "dev", self.prefix(share), None)
        return scores

    def _note_scoring(self, asked: Sequence[Model], answers: int, seconds: float) -> None:
        # A model that was poured in has no files; it is as large as those it was made of.
        size = max((self.size_of(model.path) for model in asked), default=0)
        if size:
            note_pace(self.work_dir, SCORING, answers * size, seconds)
        # A candidate of a study is asked stage by stage.
        self._asked_here |= {model.weights_sha256 for model in asked}
        self.spent.models = len(self._asked_here)
        self.spent.answers += answers
        self.spent.scoring_s += seconds

    def heat_maps(self, recipe: Recipe) -> dict[str, Figure]:
        """How the sources' task vectors interfere, layer by layer: file name -> figure."""
        resolved = self.resolve(recipe)
        inputs = [source.sha256 for source in resolved.sources.values()]
        key = (resolved.base.sha256 if resolved.base else "", *resolved.sources, *inputs)
        if key not in self._inspections:
            with self.progress.bar("comparing task vectors") as tick:
                self._inspections[key] = inspect(recipe, resolved, with_ranks=False, progress=tick)
        return figures(self._inspections[key])

    def score_parents(
        self, recipe: Recipe, *, log: Callable[[Source, Scores], object] | None = None
    ) -> dict[str, Scores]:
        """Score the base, where there is one, and every source on the dev part, and log them.

        Args:
            log: takes each and its scores; None logs them to the experiment.
        """
        parents = self.resolve(recipe).parents
        models = {name: self._model(recipe, source) for name, source in parents.items()}
        scores = dict(zip(parents, self.score_all(models, "dev"), strict=True))
        log = log or functools.partial(log_parent, self.tracking)
        for name, source in parents.items():
            log(source, scores[name])
        return scores

    def agreement(self, recipe: Recipe, result: Source) -> list[Agreement]:
        """How often the merge would go on as its base and sources, on ``evaluate.agreement``."""
        sources = self.resolve(recipe).parents
        parents = {name: self._model(recipe, source) for name, source in sources.items()}
        with self.progress.bar("comparing next tokens with the parents'") as tick:
            rows, others = agreement(
                self._model(recipe, result),
                parents,
                recipe.evaluate.texts[0],
                recipe.evaluate,
                work_dir=self.work_dir,
                trust_remote_code=self.trust_remote_code,
                progress=tick,
            )
        if others:
            self.note(
                f"{', '.join(others)} cut text into other tokens than the merge does, so their "
                "next tokens are not compared"
            )
        return rows

    def score_parent(self, recipe: Recipe, source: Source, part: str) -> Scores:
        """Score one parent and log it."""
        scores = self.score_source(source.name, recipe, source, part)
        log_parent(self.tracking, source, scores)
        return scores

    def score_source(self, label: str, recipe: Recipe, source: Source, part: str) -> Scores:
        """Score a source; an adapter is applied to its base first."""
        [scores] = self.score_all({label: self._model(recipe, source)}, part)
        return scores

    def _model(self, recipe: Recipe, source: Source) -> Model:
        path = self.full_checkpoint(recipe, source)
        return Model(path, source.sha256, self.tokenizer_for(recipe, path))


def merge_and_score(payload: Mapping[str, Any], place: Desk) -> dict[str, Any]:
    """A worker's part: make a merge where there is a plan, and have its scores kept in the work
    directory, where the driver finds them.

    Args:
        payload: of ``Tools._scoring``.
        place: its ``kept`` holds the tasks for the next model.

    Returns:
        The digest of the model's weights.
    """
    path, work_dir = Path(payload["model"]), Path(payload["work_dir"])
    if payload["plan"] is not None:
        plan = Plan.from_dict(payload["plan"])
        merge(plan, path, device=payload["device"], progress=place.tell)
    sha256 = payload["sha256"] or weights_sha256(path, cache_dir=work_dir / "cache")
    spec: EvaluateSpec = build(EvaluateSpec, payload["evaluate"], "evaluate.")
    if spec.tasks:
        if place.kept.get("tasks") is None or place.kept["tasks"].spec != spec:
            place.kept["tasks"] = load_tasks(spec)
        tokenizer = Path(payload["tokenizer"]) if payload["tokenizer"] else None
        score_all(
            [Model(path, sha256, tokenizer)],
            spec,
            payload["part"],
            work_dir=work_dir,
            tasks=place.kept["tasks"],
            trust_remote_code=payload["trust_remote_code"],
            progress=lambda _task, done, total: place.tell(done, total),
        )
    return {"sha256": sha256}
