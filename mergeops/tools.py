"""What the trials of one command share: connections, loaded tasks, caches, progress.

Every method here finds finished work first: a plan that was merged, a model that was scored on
these questions, a source that was hashed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergeops.merges_first import Digests, merge_dir, resolve_with_merges
from mergeops.plan import Plan, make_plan
from mergeops.progress import Progress
from mergeops.recipe import MethodSpec, Recipe, SourceSpec
from mergeops.tokens.spec import TokenizerSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mergeops.evaluate import Scores
    from mergeops.evaluate.asking import Candidate
    from mergeops.evaluate.tasks import TaskSet
    from mergeops.inspection import Inspection
    from mergeops.sources import Resolved, Source
    from mergeops.tracking.connection import Tracking


class Tools:
    """What the trials of one command share: connections, loaded tasks, caches, progress.

    Args:
        recipe: its tracking, evaluate, output and path settings hold for all trials.
        progress: where to show what is being done.
        tracking: a connection to share; None makes one.
    """

    def __init__(
        self, recipe: Recipe, progress: Progress, *, tracking: Tracking | None = None
    ) -> None:
        from mergeops.tracking.connection import connect

        self.progress = progress
        self.work_dir = Path(recipe.output.dir)
        self.evaluate = recipe.evaluate
        self.device = recipe.output.device
        self.trust_remote_code = recipe.trust_remote_code
        self.tracking = tracking or connect(recipe.tracking)
        self._tasks: TaskSet | None = None
        self._resolved: dict[str, Resolved] = {}
        self._inspections: dict[tuple[str, ...], Inspection] = {}
        self._warned: set[str] = set()

    def load_tasks(self) -> TaskSet | None:
        """Load and check the tasks once, before any model is touched; None where there are none."""
        if self._tasks is None and self.evaluate.tasks:
            from mergeops.evaluate.items import check_clusters
            from mergeops.evaluate.tasks import load_tasks

            self._tasks = load_tasks(self.evaluate)
            check_clusters(self._tasks)
        return self._tasks

    def resolve(self, recipe: Recipe) -> Resolved:
        """Find and pin the recipe's base and sources."""
        from mergeops.sources import resolve

        def find(one: Recipe, digests: Digests) -> Resolved:
            with self.progress.bar("reading sources", is_bytes=True) as tick:
                return resolve(
                    one,
                    cache_dir=self.work_dir / "cache",
                    digests=digests,
                    progress=lambda _label, done, total: tick(done, total),
                )

        sources = sorted(recipe.sources.items(), key=lambda item: item[0])
        key = repr((recipe.base, recipe.base_adapter, sources, recipe.merges))
        if key not in self._resolved:
            self._resolved[key] = resolve_with_merges(recipe, find, self._merge_first)
        return self._resolved[key]

    def resolve_one(self, recipe: Recipe, uri: str) -> Source:
        """Find and pin one checkpoint outside the recipe, e.g. a registered merge."""
        from mergeops.sources import resolve_uri

        return resolve_uri(
            uri,
            cache_dir=self.work_dir / "cache",
            tracking=recipe.tracking,
            path_map=recipe.path_map,
            output=recipe.output,
        )

    def merge(self, plan: Plan, label: str) -> Path:
        """Execute a plan into its directory, or find it done."""
        from mergeops.execute import merge

        with self.progress.bar(f"merging {label}", is_bytes=True) as tick:
            return merge(
                plan,
                merge_dir(self.work_dir, plan),
                device=self.device,
                progress=tick,
            )

    def _merge_first(self, plan: Plan, label: str) -> Path:
        self.warn(plan)
        return self.merge(plan, label)

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
        from mergeops.evaluate.asking import Candidate

        candidate = Candidate(path, sha256 or self.weights_sha256(path), tokenizer)
        [scores] = self.score_all(label, [candidate], part)
        return scores

    def score_all(self, label: str, candidates: Sequence[Candidate], part: str) -> list[Scores]:
        """Score full checkpoints on one part of the tasks, on all devices, or find them scored."""
        from mergeops.evaluate.harness import score_all
        from mergeops.evaluate.items import with_clusters

        tasks = self.load_tasks()
        with self.progress.bar(f"scoring {label}") as tick:
            scores = score_all(
                candidates,
                self.evaluate,
                part,
                work_dir=self.work_dir,
                tasks=tasks,
                shared=self.tracking.score_records(),
                trust_remote_code=self.trust_remote_code,
                progress=lambda _task, done, total: tick(done, total),
            )
        return [with_clusters(one, tasks) for one in scores] if tasks else scores

    def weights_sha256(self, path: Path) -> str:
        """Digest of a full checkpoint's weights; files are hashed once."""
        from mergeops.checkpoint import weights_sha256

        return weights_sha256(path, cache_dir=self.work_dir / "cache")

    def warn(self, plan: Plan) -> None:
        """Say what the plan found odd but possible, once each."""
        for warning in plan.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self.progress.step(f"note: {warning}")

    def heat_maps(self, recipe: Recipe) -> dict[str, Figure]:
        """How the sources' task vectors interfere, layer by layer: file name -> figure."""
        from mergeops.inspection import inspect
        from mergeops.report.heat_maps import figures

        resolved = self.resolve(recipe)
        inputs = [source.sha256 for source in resolved.sources.values()]
        key = (resolved.base.sha256 if resolved.base else "", *resolved.sources, *inputs)
        if key not in self._inspections:
            with self.progress.bar("comparing task vectors") as tick:
                self._inspections[key] = inspect(recipe, resolved, with_ranks=False, progress=tick)
        return figures(self._inspections[key])

    def score_parents(
        self,
        recipe: Recipe,
        *,
        log: Callable[[Source, Scores], object] | None = None,
    ) -> dict[str, Scores]:
        """Score the base, where there is one, and every source on the dev part, and log them.

        Args:
            log: called with each and its scores, in place of logging it to the experiment.
        """
        resolved = self.resolve(recipe)
        parents = {"base": resolved.base} if resolved.base else {}
        parents |= resolved.sources
        candidates = [self._candidate(recipe, source) for source in parents.values()]
        label = f"{len(parents)} parents" if len(parents) > 1 else next(iter(parents), "")
        scores = dict(zip(parents, self.score_all(label, candidates, "dev"), strict=True))
        for name, source in parents.items():
            (log or self.tracking.log_parent)(source, scores[name])
        return scores

    def score_parent(
        self,
        recipe: Recipe,
        source: Source,
        part: str,
    ) -> Scores:
        """Score one parent and log it; an adapter is applied to its base first."""
        [scores] = self.score_all(source.name, [self._candidate(recipe, source)], part)
        self.tracking.log_parent(source, scores)
        return scores

    def _candidate(self, recipe: Recipe, source: Source) -> Candidate:
        from mergeops.evaluate.asking import Candidate

        path = self.full_checkpoint(recipe, source)
        return Candidate(path, source.sha256, self.tokenizer_for(recipe, path))

    def tokenizer_for(self, recipe: Recipe, path: Path) -> Path | None:
        """The directory itself where it has a tokenizer, else the base's where that has one."""
        from mergeops.evaluate.identity import has_tokenizer

        base = self.resolve(recipe).base
        places = [path, base.path, base.adapter_base] if base else [path]
        for place in places:
            if place is not None and has_tokenizer(place):
                return place
        return None

    def full_checkpoint(self, recipe: Recipe, source: Source) -> Path:
        """The source's directory, or for an adapter the full model that it stands for."""
        if not source.is_adapter:
            return source.path
        from mergeops.methods import get

        # "base" is no source's name.
        name = source.name if source.name in recipe.sources else "adapted_base"
        own = recipe.sources.get(name) or SourceSpec(str(recipe.base_adapter), recipe.base)
        alone = dataclasses.replace(
            recipe,
            base=None,
            base_adapter=None,
            method=MethodSpec("linear", get("linear").parameters()),
            sources={name: SourceSpec(own.uri, own.base)},
            rules=(),
            slices=(),
            modules={},
            merges={},
            tokenizer=TokenizerSpec(name),
        )
        alone_source = {name: dataclasses.replace(source, name=name)}
        return self.merge(make_plan(alone, None, alone_source), source.name)
