"""Where a training run left its checkpoints, and which of them is the best whole one.

Stages, first hit wins: tags written by mergeops; MLflow 3 LoggedModels named ``checkpoint-N`` (HF
Trainer); other LoggedModels; run artifacts (MLflow 2 layout, or a logged directory); the
trainer's output directory, from params or a logged config, where it can be reached from here;
external LoggedModels that point at a checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergeops.errors import SourceError
from mergeops.sources import contents
from mergeops.sources.contents import CHECKPOINT_NAME, Contents, Kind
from mergeops.sources.logged_config import output_directories
from mergeops.sources.place import LocalPlace, Place, read_json
from mergeops.sources.run_note import BEST_TAG, CHECKPOINTS_TAG, HOST_TAG, writer_of
from mergeops.sources.store import Store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

EXTERNAL = "mlflow.model.isExternal"
CHECKPOINT_URI = "mergeops.checkpoint_uri"
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Candidate:
    """One directory that may be a checkpoint of the run."""

    name: str
    """``checkpoint-12``, a LoggedModel's name, an artifact's path, or empty for a final save."""
    place: Place
    found_by: str
    """Where the run says so, in words."""
    model_id: str | None = None
    """LoggedModel that holds it."""
    step: int | None = None
    in_output_dir: bool = False
    """Whether it lies in the trainer's directory, which a later run may have written again."""


@dataclass(frozen=True)
class Choice:
    """A candidate that is a whole checkpoint."""

    candidate: Candidate
    contents: Contents
    kind: Kind
    state: dict[str, Any]
    """The trainer's state, where it was saved; else empty."""
    why: str
    """Why this one, in words."""
    skipped: tuple[str, ...] = ()
    """What is wrong with the candidates that were passed over."""
    others: tuple[str, ...] = ()
    """Names of all candidates of the stage that it is from, newest first."""

    @property
    def step(self) -> int | None:
        """Optimiser step of the checkpoint."""
        step = self.candidate.step
        return self.state.get("global_step") if step is None else step


@dataclass
class Search:
    """One run's candidates, looked for stage by stage."""

    store: Store
    run: Run
    models: Sequence[LoggedModel]
    """LoggedModels that the run made."""
    is_ours: Callable[[dict[str, Any]], bool] | None = None
    """Whether a trainer state is this run's; asked for what lies in the trainer's directory, where
    another run may have written too. None: there is no reason to ask."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the candidates seen so far."""

    def stages(self) -> Iterator[list[Candidate]]:
        """The candidates of each stage, newest first."""
        for stage in (self._tagged, self._trainer_models, self._other_models, self._artifacts):
            yield self._guarded(stage)
        yield self._guarded(self._output_directories)
        yield self._guarded(self._pointers)

    def best(self) -> Choice | None:
        """The best whole checkpoint of the first stage that has one: what trainer_state.json calls
        the best, else that with its lowest eval_loss, else what the run's tag says, else the
        newest."""
        for candidates in self.stages():
            newest = self._first_whole(candidates)
            if newest is None:
                continue
            names = tuple(c.name for c in candidates if c.name)
            for named, why in self._best_names(newest, names):
                if named == newest.candidate.name:
                    return self._chosen(newest, why, names)
                best = self._first_whole([c for c in candidates if c.name == named])
                if best is not None:
                    from_newest = why.endswith(TRAINER_STATE)
                    more = f" of {newest.candidate.name}" if from_newest else ""
                    return self._chosen(best, why + more, names)
            return self._chosen(newest, "newest whole one", names)
        return None

    def _best_names(self, newest: Choice, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Which one is the best, and who says so; the first that is whole is taken."""
        said = str(newest.state.get("best_model_checkpoint") or "").rstrip("/")
        if said:
            yield os.path.basename(said), f"best by {TRAINER_STATE}"
        losses = eval_losses(newest.state)
        scored = [(losses[step], name) for name in names if (step := step_of(name)) in losses]
        for _, name in sorted(scored, key=lambda pair: pair[0]):
            yield name, f"lowest eval_loss in {TRAINER_STATE}"
        # Last: of a run that was killed it may be older than the newest checkpoint.
        tagged = self.run.data.tags.get(BEST_TAG)
        if tagged:
            yield tagged, f"best by tag {BEST_TAG}"

    def named(self, name: str) -> Choice | None:
        """The whole checkpoint of this name."""
        for candidates in self.stages():
            whole = self._first_whole([c for c in candidates if c.name == name])
            if whole is not None:
                return self._chosen(whole, "named")
        return None

    def names(self) -> list[str]:
        """Every name that ``named`` may be asked for."""
        names = [c.name for stage in self.stages() for c in stage if c.name]
        return list(dict.fromkeys(names))

    def _chosen(self, choice: Choice, why: str, others: Sequence[str] = ()) -> Choice:
        skipped = tuple(self.problems)
        return dataclasses.replace(choice, why=why, skipped=skipped, others=tuple(others))

    def _first_whole(self, candidates: Sequence[Candidate]) -> Choice | None:
        for candidate in candidates:
            try:
                found = contents.examine(candidate.place)
                if found.kind is None:
                    self.problems.append(str(found.problem))
                    continue
                contents.check_whole(candidate.place, found.kind)
                state = read_json(candidate.place, TRAINER_STATE) or {}
            except SourceError as error:
                self.problems.append(str(error))
                continue
            if candidate.in_output_dir and (problem := self._whose(candidate, state)):
                self.problems.append(problem)
                continue
            return Choice(candidate, found, found.kind, state, "")
        return None

    def _whose(self, candidate: Candidate, state: dict[str, Any]) -> str | None:
        """Why a checkpoint in the trainer's directory is not this run's; None where it is."""
        writer = writer_of(candidate.place)
        if writer is not None:
            ours = writer == self.run.info.run_id
            return None if ours else f"{candidate.place.shown} was written by run {writer}"
        if self.is_ours is None or self.is_ours(state):
            return None
        return (
            f"{candidate.place.shown} was written by another run: its {TRAINER_STATE} "
            "holds losses that this run did not log"
        )

    def _guarded(self, stage: Callable[[], list[Candidate]]) -> list[Candidate]:
        # A store that is gone for one stage does not hide what another finds.
        try:
            return _newest_first(stage())
        except SourceError as error:
            self.problems.append(str(error))
            return []

    def _tagged(self) -> list[Candidate]:
        uri = self.run.data.tags.get(CHECKPOINT_URI)
        if not uri:
            return []
        place = self.store.open(uri)
        found_by = f"tag {CHECKPOINT_URI}"
        inside = contents.checkpoints_in(place.entries())
        if inside:
            return [Candidate(n, place.inside(n), found_by, step=s) for s, n in inside]
        name = uri.rstrip("/").rsplit("/", 1)[-1]
        return [Candidate(name, place, found_by, step=step_of(name))]

    def _trainer_models(self) -> list[Candidate]:
        found = []
        for model in self.models:
            if not CHECKPOINT_NAME.match(model.name) or _is_external(model):
                continue
            if str(model.status) != "READY":
                self.problems.append(
                    f"LoggedModel {model.name} ({model.model_id}) is {model.status}: its upload "
                    "did not finish"
                )
                continue
            # The trainer packs checkpoint-N as an artifact named model_path into a pyfunc model.
            place = self.store.open(model.artifact_location).inside(f"artifacts/{model.name}")
            found.append(
                Candidate(
                    model.name,
                    place,
                    f"LoggedModel {model.model_id}",
                    model.model_id,
                    step_of(model.name),
                )
            )
        return found

    def _other_models(self) -> list[Candidate]:
        found = []
        for model in self.models:
            if CHECKPOINT_NAME.match(model.name) or str(model.status) != "READY":
                continue
            if _is_external(model):
                continue
            place = contents.find_checkpoint(self.store.open(model.artifact_location))
            if place is not None:
                found_by = f"LoggedModel {model.model_id}"
                found.append(Candidate(model.name, place, found_by, model.model_id))
        return found

    def _pointers(self) -> list[Candidate]:
        # Last, since what adopt once pointed at may have newer checkpoints beside it by now.
        found = []
        for model in self.models:
            uri = model.tags.get(CHECKPOINT_URI)
            if uri and _is_external(model):
                name = uri.rstrip("/").rsplit("/", 1)[-1]
                found_by = f"tag {CHECKPOINT_URI} of LoggedModel {model.model_id}"
                place = self.store.open(uri)
                found.append(Candidate(name, place, found_by, model.model_id, step_of(name)))
        return found

    def _artifacts(self) -> list[Candidate]:
        root = self.store.open(self.run.info.artifact_uri)
        found = []
        for entry in root.entries():
            if not entry.is_dir:
                continue
            place = root.inside(entry.name)
            if CHECKPOINT_NAME.match(entry.name):
                packed = place.inside(f"artifacts/{entry.name}")
                place = packed if packed.entries() else place
                found.append(
                    Candidate(entry.name, place, "run artifacts", step=step_of(entry.name))
                )
                continue
            inside = place.entries()
            for step, name in contents.checkpoints_in(inside):
                found.append(Candidate(name, place.inside(name), "run artifacts", step=step))
            direct = contents.find_checkpoint(place)
            if direct is not None:
                found.append(Candidate(entry.name, direct, "run artifacts"))
        return found

    def _output_directories(self) -> list[Candidate]:
        found = []
        for directory in output_directories(self.store, self.run):
            reachable = False
            for path in self.store.nearby(directory.path):
                place = LocalPlace(path)
                entries = place.entries()
                reachable = reachable or bool(entries)
                steps = [*contents.checkpoints_in(entries), *contents.epochs_in(entries)]
                found += [
                    Candidate(n, place.inside(n), directory.found_by, step=s, in_output_dir=True)
                    for s, n in steps
                ]
                if contents.examine(place, entries).kind:
                    found.append(Candidate("", place, directory.found_by, in_output_dir=True))
            if not reachable:
                tags = self.run.data.tags
                host = f" on {tags[HOST_TAG]}" if HOST_TAG in tags else ""
                there = tags.get(CHECKPOINTS_TAG, "").split()
                held = f"; it was given {', '.join(there[-3:])}" if there else ""
                self.problems.append(
                    f"{directory.found_by} is {directory.path}{host}, which is empty or not "
                    f"reachable from here{held}; if it moved, map it with path_map"
                )
        return found


def step_of(name: str) -> int | None:
    """The N of ``checkpoint-N``."""
    match = CHECKPOINT_NAME.match(name)
    return int(match.group(1)) if match else None


def eval_losses(state: Mapping[str, Any]) -> dict[int | None, float]:
    """Step -> eval_loss, as a trainer's state holds them; those that are no numbers left out."""
    return {
        entry["step"]: float(entry["eval_loss"])
        for entry in state.get("log_history") or []
        if isinstance(entry, Mapping)
        and isinstance(entry.get("step"), int)
        and is_finite(entry.get("eval_loss"))
    }


def is_finite(value: Any) -> bool:
    """Whether a logged value is a number."""
    # A store keeps infinity as the largest double.
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) < 1e308


def _is_external(model: LoggedModel) -> bool:
    return bool(model.tags.get(EXTERNAL) == "true")


def _newest_first(candidates: list[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: -1 if c.step is None else c.step, reverse=True)
