"""Where a training run left its checkpoints, and which of them is the best whole one.

Stages, first hit wins: tags written by mergeops; MLflow 3 LoggedModels named ``checkpoint-N`` (HF
Trainer); other LoggedModels; run artifacts (MLflow 2 layout, or a logged directory); the
trainer's output directory, from params or a logged config, where it can be reached from here;
external LoggedModels that point at a checkpoint.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergeops.errors import SourceError
from mergeops.sources.contents import (
    CHECKPOINT_NAME,
    Contents,
    Kind,
    check_whole,
    checkpoints_in,
    epochs_in,
    examine,
    find_checkpoint,
)
from mergeops.sources.logged_config import output_directories
from mergeops.sources.remote.directory import Directory, LocalDirectory, read_json
from mergeops.sources.run_note import RunTags, writer_of
from mergeops.sources.training_runs import TrainingRuns

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

EXTERNAL = "mlflow.model.isExternal"
CHECKPOINT_URI = "mergeops.checkpoint_uri"
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class CheckpointCandidate:
    """One directory that may be a checkpoint of the run."""

    name: str
    """``checkpoint-12``, a LoggedModel's name, an artifact's path, or empty for a final save."""
    directory: Directory
    found_by: str
    """Where the run says so, in words."""
    model_id: str | None = None
    """LoggedModel that holds it."""
    step: int | None = None
    in_output_dir: bool = False
    """Whether it lies in the trainer's directory, which a later run may have written again."""


@dataclass(frozen=True)
class CheckpointChoice:
    """A candidate that is a whole checkpoint."""

    candidate: CheckpointCandidate
    contents: Contents
    state: dict[str, Any]
    """The trainer's state, where it was saved; else empty."""
    why: str = ""
    """Why this one, in words."""
    skipped: tuple[str, ...] = ()
    """What is wrong with the candidates that were passed over."""
    others: tuple[str, ...] = ()
    """Names of all candidates of the stage that it is from, newest first."""

    @property
    def kind(self) -> Kind | None:
        """Full or LoRA; it is one of them."""
        return self.contents.kind

    @property
    def step(self) -> int | None:
        """Optimiser step of the checkpoint."""
        step = self.candidate.step
        return self.state.get("global_step") if step is None else step


@dataclass
class Search:
    """One run's candidates, looked for stage by stage."""

    store: TrainingRuns
    run: Run
    models: Sequence[LoggedModel]
    """LoggedModels that the run made."""
    is_ours: Callable[[dict[str, Any]], bool] | None = None
    """Whether a trainer state is this run's; asked for what lies in the trainer's directory, where
    another run may have written too. None: there is no reason to ask."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the candidates seen so far."""

    def stages(self) -> Iterator[list[CheckpointCandidate]]:
        """The candidates of each stage, newest first."""
        yield self._guarded(self._tagged)
        yield self._guarded(self._trainer_models)
        yield self._guarded(self._other_models)
        yield self._guarded(self._artifacts)
        yield self._guarded(self._output_directories)
        yield self._guarded(self._pointers)

    def best(self) -> CheckpointChoice | None:
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

    def _best_names(
        self, newest: CheckpointChoice, names: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """Which one is the best, and who says so; the first that is whole is taken."""
        said = str(newest.state.get("best_model_checkpoint") or "").rstrip("/")
        if said:
            yield os.path.basename(said), f"best by {TRAINER_STATE}"
        losses = eval_losses(newest.state)
        scored = [(losses[step], name) for name in names if (step := step_of(name)) in losses]
        for _, name in sorted(scored, key=lambda pair: pair[0]):
            yield name, f"lowest eval_loss in {TRAINER_STATE}"
        # Last: of a run that was killed it may be older than the newest checkpoint.
        tagged = self.run.data.tags.get(RunTags.BEST)
        if tagged:
            yield tagged, f"best by tag {RunTags.BEST}"

    def named(self, name: str) -> CheckpointChoice | None:
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

    def _chosen(
        self, choice: CheckpointChoice, why: str, others: Sequence[str] = ()
    ) -> CheckpointChoice:
        skipped = tuple(self.problems)
        return dataclasses.replace(choice, why=why, skipped=skipped, others=tuple(others))

    def _first_whole(self, candidates: Sequence[CheckpointCandidate]) -> CheckpointChoice | None:
        for candidate in candidates:
            try:
                contents = examine(candidate.directory)
                if contents.kind is None:
                    self.problems.append(str(contents.problem))
                    continue
                check_whole(candidate.directory, contents.kind)
                state = read_json(candidate.directory, TRAINER_STATE) or {}
            except SourceError as error:
                self.problems.append(str(error))
                continue
            if candidate.in_output_dir and (problem := self._whose(candidate, state)):
                self.problems.append(problem)
                continue
            return CheckpointChoice(candidate, contents, state)
        return None

    def _whose(self, candidate: CheckpointCandidate, state: dict[str, Any]) -> str | None:
        """Why a checkpoint in the trainer's directory is not this run's; None where it is."""
        writer = writer_of(candidate.directory)
        if writer is not None:
            ours = writer == self.run.info.run_id
            return None if ours else f"{candidate.directory.shown} was written by run {writer}"
        if self.is_ours is None or self.is_ours(state):
            return None
        return (
            f"{candidate.directory.shown} was written by another run: its {TRAINER_STATE} "
            "holds losses that this run did not log"
        )

    def _guarded(
        self, stage: Callable[[], Iterator[CheckpointCandidate]]
    ) -> list[CheckpointCandidate]:
        """All of one stage; a store that is gone for it does not hide what another finds."""
        try:
            return sorted(stage(), key=lambda c: -1 if c.step is None else c.step, reverse=True)
        except SourceError as error:
            self.problems.append(str(error))
            return []

    def _tagged(self) -> Iterator[CheckpointCandidate]:
        uri = self.run.data.tags.get(CHECKPOINT_URI)
        if not uri:
            return
        directory = self.store.open(uri)
        found_by = f"tag {CHECKPOINT_URI}"
        inside = checkpoints_in(directory.entries())
        yield from _each(inside, directory, found_by)
        if not inside:
            yield _pointed_at(uri, directory, found_by)

    def _trainer_models(self) -> Iterator[CheckpointCandidate]:
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
            packed = self.store.open(model.artifact_location).inside(f"artifacts/{model.name}")
            yield _named(model.name, packed, f"LoggedModel {model.model_id}", model.model_id)

    def _other_models(self) -> Iterator[CheckpointCandidate]:
        for model in self.models:
            if CHECKPOINT_NAME.match(model.name) or str(model.status) != "READY":
                continue
            if _is_external(model):
                continue
            checkpoint = find_checkpoint(self.store.open(model.artifact_location))
            if checkpoint is not None:
                found_by = f"LoggedModel {model.model_id}"
                yield _named(model.name, checkpoint.directory, found_by, model.model_id)

    def _pointers(self) -> Iterator[CheckpointCandidate]:
        # Last, since what adopt once pointed at may have newer checkpoints beside it by now.
        for model in self.models:
            uri = model.tags.get(CHECKPOINT_URI)
            if uri and _is_external(model):
                found_by = f"tag {CHECKPOINT_URI} of LoggedModel {model.model_id}"
                yield _pointed_at(uri, self.store.open(uri), found_by, model.model_id)

    def _artifacts(self) -> Iterator[CheckpointCandidate]:
        root, found_by = self.store.open(self.run.info.artifact_uri), "run artifacts"
        for entry in root.entries():
            if not entry.is_dir:
                continue
            directory = root.inside(entry.name)
            if CHECKPOINT_NAME.match(entry.name):
                packed = directory.inside(f"artifacts/{entry.name}")
                directory = packed if packed.entries() else directory
                yield _named(entry.name, directory, found_by)
                continue
            yield from _each(checkpoints_in(directory.entries()), directory, found_by)
            checkpoint = find_checkpoint(directory)
            if checkpoint is not None:
                yield CheckpointCandidate(entry.name, checkpoint.directory, found_by)

    def _output_directories(self) -> Iterator[CheckpointCandidate]:
        for said in output_directories(self.store, self.run):
            is_reachable = False
            for path in self.store.nearby(said.path):
                directory = LocalDirectory(path)
                entries = directory.entries()
                is_reachable = is_reachable or bool(entries)
                numbered = [*checkpoints_in(entries), *epochs_in(entries)]
                saves = [*_each(numbered, directory, said.found_by)]
                if examine(directory, entries).kind:
                    saves.append(CheckpointCandidate("", directory, said.found_by))
                yield from (dataclasses.replace(save, in_output_dir=True) for save in saves)
            if not is_reachable:
                tags = self.run.data.tags
                host = f" on {tags[RunTags.HOST]}" if RunTags.HOST in tags else ""
                written = tags.get(RunTags.CHECKPOINTS, "").split()
                held = f"; it was given {', '.join(written[-3:])}" if written else ""
                self.problems.append(
                    f"{said.found_by} is {said.path}{host}, which is empty or not "
                    f"reachable from here{held}; if it moved, map it with path_map"
                )


def _each(
    numbered: Sequence[tuple[int, str]], parent: Directory, found_by: str
) -> Iterator[CheckpointCandidate]:
    """The numbered checkpoints of a directory."""
    for step, name in numbered:
        yield CheckpointCandidate(name, parent.inside(name), found_by, step=step)


def _named(
    name: str, directory: Directory, found_by: str, model_id: str | None = None
) -> CheckpointCandidate:
    """A checkpoint whose name says its step, where it is ``checkpoint-N``."""
    return CheckpointCandidate(name, directory, found_by, model_id, step_of(name))


def _pointed_at(
    uri: str, directory: Directory, found_by: str, model_id: str | None = None
) -> CheckpointCandidate:
    """The checkpoint that a tag leads to; it is called by the end of the tag's URI."""
    return _named(uri.rstrip("/").rsplit("/", 1)[-1], directory, found_by, model_id)


def step_of(name: str) -> int | None:
    """The N of ``checkpoint-N``."""
    match = CHECKPOINT_NAME.match(name)
    return int(match.group(1)) if match else None


def eval_losses(state: Mapping[str, Any]) -> dict[int | None, float]:
    """Step -> eval_loss, as a trainer's state holds them; those that are no numbers left out."""
    history = state.get("log_history")
    return {
        entry["step"]: float(entry["eval_loss"])
        for entry in (history if isinstance(history, list) else [])
        if isinstance(entry, Mapping)
        and isinstance(entry.get("step"), int)
        and is_finite(entry.get("eval_loss"))
    }


def is_finite(value: Any) -> bool:
    """Whether a logged value is a number."""
    # A store keeps infinity as the largest double.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308


def _is_external(model: LoggedModel) -> bool:
    return bool(model.tags.get(EXTERNAL) == "true")
