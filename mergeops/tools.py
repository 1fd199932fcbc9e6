"""What the trials of one command share: connections, loaded tasks, caches, progress.

Every method here finds finished work first: a plan that was merged, a model that was scored on
these questions, a source that was hashed.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mergeops.engine import SCORING, note_pace
from mergeops.evaluate import (
    Agreement,
    Model,
    TaskSet,
    agreement,
    check_clusters,
    check_directions,
    load_tasks,
    part_sizes,
    read_passages,
    score_all,
    with_clusters,
)
from mergeops.inspection import Inspection, figures, inspect
from mergeops.progress import Progress
from mergeops.recipe import Recipe
from mergeops.scores import Scores
from mergeops.sources import Source
from mergeops.store import Tracking, connect
from mergeops.tracking import ScoreRecords, log_parent
from mergeops.workshop import Spent, Workshop

__all__ = ["Spent", "Tools"]

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
        super().__init__(recipe, progress)
        self.evaluate = recipe.evaluate
        self.trust_remote_code = recipe.trust_remote_code
        self.tracking = tracking or connect(recipe.tracking)
        self._tasks: TaskSet | None = None
        self._prefixes: dict[float, TaskSet] = {}
        self._inspections: dict[tuple[str, ...], Inspection] = {}

    def load_tasks(self) -> TaskSet | None:
        """Load and check the tasks once, before any model is touched; None where there are none."""
        if self._tasks is None and self.evaluate.tasks:
            self._tasks = load_tasks(self.evaluate)
            check_clusters(self._tasks)
            check_directions(self._tasks)
        return self._tasks

    def check_texts(self) -> None:
        """Refuse a text that cannot be compared on, before hours of merging."""
        for text in self.texts:
            read_passages(text)

    @property
    def texts(self) -> list[Path]:
        """That of ``evaluate.agreement``, where it names one."""
        named = self.evaluate.agreement
        return [] if named is None else [Path(named).expanduser()]

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
        return self._score(models, part, self.load_tasks(), ScoreRecords(self.tracking))

    def _score(
        self,
        models: Mapping[str, Model],
        part: str,
        tasks: TaskSet | None,
        shared: ScoreRecords | None,
    ) -> list[Scores]:
        numbers = {id(model): i for i, model in enumerate(models.values(), 1)}
        names = {id(model): name for name, model in models.items()}

        asked: list[Model] = []
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
            )
        if asked and tasks:
            self._note_scoring(asked, sum(part_sizes(tasks, part).values()), began)
        return [with_clusters(each, tasks) for each in scores] if tasks else scores

    def score_prefix(self, label: str, path: Path, share: float) -> Scores:
        """Score a full checkpoint on the first share of each task's dev items.

        A smaller share is part of a larger one, so that only new items are asked. The scores are
        kept on this machine only.
        """
        if share not in self._prefixes:
            limit = self.evaluate.limit
            if share < 1:
                limit = math.ceil(limit * share) if isinstance(limit, int) else share * (limit or 1)
            spec = dataclasses.replace(self.evaluate, limit=limit)
            whole = self.load_tasks()
            self._prefixes[share] = whole if whole and spec == whole.spec else load_tasks(spec)
        tasks = self._prefixes[share]
        model = Model(path, self.weights_sha256(path))
        [scores] = self._score({label: model}, "dev", tasks, None)
        return scores

    def _note_scoring(self, asked: Sequence[Model], items: int, began: float) -> None:
        seconds = time.monotonic() - began
        sizes = [self.size_of(model.path) for model in asked]
        note_pace(self.work_dir, SCORING, items * sum(sizes), seconds)
        self.spent.models += len(asked)
        self.spent.answers += items * len(asked)
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
        resolved = self.resolve(recipe)
        base = {"base": resolved.base} if resolved.base else {}
        parents = {**base, **resolved.sources}
        models = {name: self._model(recipe, source) for name, source in parents.items()}
        scores = dict(zip(parents, self.score_all(models, "dev"), strict=True))
        log = log or partial(log_parent, self.tracking)
        for name, source in parents.items():
            log(source, scores[name])
        return scores

    def agreement(self, recipe: Recipe, checkpoint: Path) -> list[Agreement]:
        """How often the merge would go on as its base and sources, on ``evaluate.agreement``."""
        resolved = self.resolve(recipe)
        base = {"base": resolved.base} if resolved.base else {}
        parents = {
            name: self._model(recipe, source)
            for name, source in {**base, **resolved.sources}.items()
        }
        with self.progress.bar("comparing next tokens with the parents'") as tick:
            rows, others = agreement(
                Model(checkpoint, self.weights_sha256(checkpoint)),
                parents,
                self.texts[0],
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
