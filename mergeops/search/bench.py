"""Merge a candidate into the model that scores it, ask it stage by stage, and forget the weights.

A merge is poured straight into the weights of the model that is in memory, tensor by tensor: the
bytes are those of ``mergeops merge``, and none is written. Where the model can only be had from
files (vLLM, weights that transformers lays out in another way), they are made in memory
(``/dev/shm``) where two of them fit, else below the work directory. What stays of a candidate are
its scores, in a file of its own, so that a study goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mergeops.checkpoint import replace_with
from mergeops.engine import OpenInputs, pour
from mergeops.evaluate import Model, Seat, pick_devices
from mergeops.planning import Plan, make_plan, write_small_files
from mergeops.recipe import Recipe
from mergeops.scores import Scores
from mergeops.search.racing import WAITING, WHOLE, Race, RaceVerdict
from mergeops.tools import Tools

MEMORY = Path("/dev/shm")
"""A file system in memory, on Linux."""


@dataclass(kw_only=True)
class Cost:
    """What was spent."""

    answers: int = 0
    """Items asked, of all candidates together."""
    merge_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    bytes_read: int = 0
    """From disks, while merging: what the system has in memory is not read again."""
    bytes_written: int = 0
    """Of weights that had to become files."""

    def add(self, other: Cost) -> None:
        """Count what another counted."""
        for field_ in dataclasses.fields(self):
            name = field_.name
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def seconds(self) -> float:
        """Of merging and scoring."""
        return self.merge_seconds + self.evaluation_seconds


@dataclass(kw_only=True)
class Candidate:
    """A merge that was scored as far as it got."""

    label: str
    recipe: Recipe
    plan_digest: str
    stages: dict[float, Scores] = field(default_factory=dict)
    """Share of the dev items -> scores on them."""
    verdict: RaceVerdict = field(default_factory=lambda: RaceVerdict(WAITING))
    cost: Cost = field(default_factory=Cost)
    """Of everything that was ever done for it, also by an earlier command."""

    @property
    def is_whole(self) -> bool:
        """Whether it was asked all items."""
        return self.verdict.state == WHOLE

    @property
    def scores(self) -> Scores:
        """On the most items that it was asked."""
        return self.stages[max(self.stages)]

    @property
    def answers(self) -> int:
        """Items that it was asked."""
        return sum(task.n for task in self.scores.tasks.values())


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a candidate is tried out."""

    may_wait: bool = False
    """Whether it stops where it is behind the leader."""
    is_raced: bool = True
    """False asks it everything."""
    reached: float = 0.0
    """The share that it was asked before it had to wait."""


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
        """Of this process."""
        self._inputs = OpenInputs()
        self._counted: set[str] = set()
        spec = tools.evaluate
        device = None if spec.backend == "vllm" else pick_devices(spec.device)[0]
        self._seat = Seat(device, trust_remote_code=tools.trust_remote_code)

    def try_out(self, label: str, recipe: Recipe, way: Way, race: Race | None = None) -> Candidate:
        """Merge and score a candidate, or find it scored; see ``Race.run``.

        Args:
            race: that it takes part in; None is the study's.

        Raises:
            MergeopsError: it cannot be merged or scored.
        """
        resolved = self.tools.resolve(recipe)
        plan = make_plan(recipe, resolved.base, resolved.sources)
        self.tools.warn(plan)
        candidate = Candidate(label=label, recipe=recipe, plan_digest=plan.digest)
        kept, candidate.cost = self.kept(plan.digest)
        spent = Cost()
        model: Model | None = None

        def ask(share: float) -> Scores:
            nonlocal model
            if share not in kept:
                model = model or self._merged(plan, recipe, label, spent)
                began = time.monotonic()
                kept[share] = self.tools.score_prefix(label, model, share, self._seat)
                spent.evaluation_seconds += time.monotonic() - began
                spent.answers += _items(kept[share]) - max(
                    (_items(scores) for known, scores in kept.items() if known < share), default=0
                )
                total = dataclasses.replace(candidate.cost)
                total.add(spent)
                self.keep(plan.digest, kept, total)
            return kept[share]

        candidate.stages = {s: scores for s, scores in kept.items() if s <= way.reached}
        try:
            # What an earlier command asked is gone through as if it were asked now.
            candidate.verdict = (race or self.race).run(
                candidate.stages, ask, may_wait=way.may_wait, is_raced=way.is_raced
            )
        finally:
            for place in self._places():
                shutil.rmtree(place / plan.digest[:16], ignore_errors=True)
            candidate.cost.add(spent)
            self.cost.add(spent)
        return candidate

    def close(self) -> None:
        """Give back the model, the sources and what is left in memory."""
        self._seat.close()
        self._inputs.close()
        for place in (*self._places(), self.folder / "configs"):
            shutil.rmtree(place, ignore_errors=True)

    def _merged(self, plan: Plan, recipe: Recipe, label: str, spent: Cost) -> Model:
        """The merge in the seat, or as files where it must be some."""
        with self._merging(spent):
            weights = _PouredPlan(plan, label, self.tools, self._inputs)
            tasks, vessels = self.tools.prefix(self.race.shares[0]), self._vessels(recipe)
            model = self._seat.fill(self._config(plan), weights, tasks, vessels)
            if model is not None:
                # A race merges what it asks again; it is one merge all the same.
                if plan.digest not in self._counted:
                    self._counted.add(plan.digest)
                    self.tools.spent.merges += 1
                return model
            place = self._place(plan) / plan.digest[:16]
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            path = self.tools.merge(plan, label, place)
            if place.is_relative_to(self.folder):
                spent.bytes_written += plan.bytes_to_write
            return Model(path, self.tools.weights_sha256(path))

    @contextmanager
    def _merging(self, spent: Cost) -> Iterator[None]:
        """Counts what the block takes."""
        began, read = time.monotonic(), _bytes_read()
        yield
        seconds = time.monotonic() - began
        spent.merge_seconds += seconds
        spent.bytes_read += _bytes_read() - read
        self.tools.spent.merging_s += seconds

    def _config(self, plan: Plan) -> Path:
        """Everything of the checkpoint but its weights, once for all plans that share it."""
        content = [[each.identity for each in plan.companions], dict(plan.config), plan.save_dtype]
        name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.folder / "configs" / name
        if not folder.is_dir():
            partial = folder.with_name(f".{name}")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write_small_files(plan, partial)
            partial.rename(folder)
        return folder

    def _vessels(self, recipe: Recipe) -> Iterator[Model]:
        """Full checkpoints among the inputs, whose models a merge may be poured into."""
        resolved = self.tools.resolve(recipe)
        for source in [*resolved.sources.values(), *([resolved.base] if resolved.base else [])]:
            path = source.adapter_base or source.path
            yield Model(path, "", self.tools.tokenizer_for(recipe, path))

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

    def kept(self, name: str) -> tuple[dict[float, Scores], Cost]:
        """Scores that were kept under a name, and what they cost; none where it cannot be read."""
        try:
            raw = json.loads(self._file(name).read_text(encoding="utf-8"))
            stages = {float(s): Scores.from_dict(each) for s, each in raw["stages"].items()}
            return stages, Cost(**raw["cost"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}, Cost()

    def keep(self, name: str, stages: Mapping[float, Scores], cost: Cost) -> None:
        """Keep scores, for a command that goes on and for other workers."""
        file = self._file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        raw = {str(share): scores.to_dict() for share, scores in stages.items()}
        text = json.dumps({"stages": raw, "cost": dataclasses.asdict(cost)})
        with replace_with(file) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _file(self, name: str) -> Path:
        return self.folder / "scores" / f"{name}.json"


@dataclass(frozen=True)
class _PouredPlan:
    """The result of a plan, as it is poured."""

    plan: Plan
    label: str
    tools: Tools
    inputs: OpenInputs

    @property
    def tensors(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Name -> safetensors dtype and shape."""
        return {task.name: (task.dtype, task.shape) for task in self.plan.tasks}

    def pour(self, take: Callable[[str, int, memoryview], None]) -> str:
        """Give the bytes; returns the digest of the checkpoint that they would be."""
        with self.tools.progress.bar(f"merging {self.label}", is_bytes=True) as tick:
            return pour(
                self.plan, take, device=self.tools.device, inputs=self.inputs, progress=tick
            )


def _items(scores: Scores) -> int:
    return sum(task.n for task in scores.tasks.values())


def _bytes_read() -> int:
    """From disks, by this process; 0 where the system does not say."""
    counters = getattr(psutil.Process(), "io_counters", None)
    return int(counters().read_bytes) if counters else 0
