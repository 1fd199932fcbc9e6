"""Merge a recipe where it costs no disk, score it stage by stage, and forget the weights.

Candidates of a study are written to memory (``/dev/shm``) where two of them fit, else below the
work directory. It is the merge of ``mergeops merge``, byte by byte. What stays of a candidate are
its scores, in a file of its own, so that a study goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mergeops.checkpoint import replace_with
from mergeops.planning import Plan, make_plan
from mergeops.recipe import Recipe
from mergeops.scores import Comparison, Scores
from mergeops.search.racing import Race
from mergeops.tools import Tools

MEMORY = Path("/dev/shm")
"""A file system in memory, on Linux."""


@dataclass(kw_only=True)
class Cost:
    """What a study has spent on its candidates."""

    answers: int = 0
    """Items asked, of all candidates together."""
    merge_seconds: float = 0.0
    evaluation_seconds: float = 0.0


@dataclass(kw_only=True)
class Candidate:
    """A merge that was scored as far as it got."""

    label: str
    recipe: Recipe
    plan_digest: str
    stages: dict[float, Scores] = field(default_factory=dict)
    """Share of the dev items -> scores on them."""
    look: Comparison | None = None
    """The comparison with the leader that dropped it."""
    answers: int = 0
    """Items that it was asked."""

    @property
    def is_whole(self) -> bool:
        """Whether it was asked all items."""
        return self.look is None

    @property
    def scores(self) -> Scores:
        """On the most items that it was asked."""
        return self.stages[max(self.stages)]


class Bench:
    """Where the candidates of one study are made and scored.

    Args:
        tools: what the trials of the study share.
        folder: of the study, below the work directory.
        race: who may be dropped, and when.
    """

    def __init__(self, tools: Tools, folder: Path, race: Race) -> None:
        self.tools, self.folder, self.race = tools, folder, race
        self.cost = Cost()
        self._known: dict[str, Candidate] = {}

    def try_out(self, label: str, recipe: Recipe, *, raced: bool) -> Candidate:
        """Merge and score a candidate, or find it scored.

        Args:
            raced: whether it may be dropped before it was asked everything.

        Raises:
            MergeopsError: it cannot be merged or scored.
        """
        resolved = self.tools.resolve(recipe)
        plan = make_plan(recipe, resolved.base, resolved.sources)
        self.tools.warn(plan)
        if plan.digest in self._known and self._known[plan.digest].is_whole:
            return self._known[plan.digest]
        candidate = Candidate(label=label, recipe=recipe, plan_digest=plan.digest)
        kept = self._kept(plan)
        weights: Path | None = None
        try:
            for share in self.race.shares:
                scores = kept.get(share)
                if scores is None:
                    weights = weights or self._merged(plan, label)
                    scores = self._timed(self.tools.score_prefix, label, weights, share)
                    kept[share] = scores
                    self._keep(plan, kept)
                candidate.stages[share] = scores
                look = self.race.look(share, scores) if raced else None
                if self.race.is_lost(look):
                    candidate.look = look
                    break
        finally:
            if weights is not None:
                shutil.rmtree(weights, ignore_errors=True)
        candidate.answers = sum(task.n for task in candidate.scores.tasks.values())
        before = self._known.get(plan.digest)
        self.cost.answers += candidate.answers - (before.answers if before else 0)
        self._known[plan.digest] = candidate
        if candidate.is_whole:
            self.race.finish(candidate.stages)
        return candidate

    def close(self) -> None:
        """Remove what is left in memory."""
        for place in self._places():
            shutil.rmtree(place, ignore_errors=True)

    def _merged(self, plan: Plan, label: str) -> Path:
        began = time.monotonic()
        place = self._place(plan) / plan.digest[:16]
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        path = self.tools.merge(plan, label, place)
        self.cost.merge_seconds += time.monotonic() - began
        return path

    def _timed(self, score: Callable[..., Scores], *arguments: Any) -> Scores:
        began = time.monotonic()
        try:
            return score(*arguments)
        finally:
            self.cost.evaluation_seconds += time.monotonic() - began

    def _places(self) -> tuple[Path, Path]:
        return MEMORY / f"mergeops-{self.folder.name}", self.folder / "merges"

    def _place(self, plan: Plan) -> Path:
        """In memory where the merge and a copy of it fit, with half of the memory left alone."""
        in_memory, on_disk = self._places()
        needed = 2 * plan.bytes_to_write
        try:
            fits = needed < min(
                shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available // 2
            )
        except OSError:
            fits = False
        return in_memory if fits else on_disk

    def _file(self, plan: Plan) -> Path:
        return self.folder / "scores" / f"{plan.digest}.json"

    def _kept(self, plan: Plan) -> dict[float, Scores]:
        """Scores of the same merge, made before; nothing of a file that cannot be read."""
        try:
            raw: Mapping[str, Any] = json.loads(self._file(plan).read_text(encoding="utf-8"))
            return {float(share): Scores.from_dict(each) for share, each in raw.items()}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _keep(self, plan: Plan, stages: Mapping[float, Scores]) -> None:
        file = self._file(plan)
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({str(share): scores.to_dict() for share, scores in stages.items()})
        with replace_with(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
