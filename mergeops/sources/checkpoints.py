"""Where a training run left its checkpoints, and which of them is the best whole one.

Stages, first hit wins: tags written by mergeops; LoggedModels (``checkpoint-N`` of the HF Trainer,
and what scripts log by hand); run artifacts; the trainer's output directory, from params or a
logged config, where it can be reached from here; external LoggedModels that point at a checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergeops.errors import SourceError
from mergeops.sources.best import RunMetric, history_of, run_metrics, step_on, value_on
from mergeops.sources.checkpoint_choice import LOWEST, CheckpointCandidate, CheckpointChoice
from mergeops.sources.contents import Location, check_whole, step_of
from mergeops.sources.fingerprint import (
    TRAINER_STATE,
    Ownership,
    logged_values,
    ownership,
    state_of,
)
from mergeops.sources.logged_config import output_directories
from mergeops.sources.remote.directory import Directory, LocalDirectory
from mergeops.sources.run_note import RunTags, writer_of
from mergeops.sources.saves import find_checkpoint, saves_in, why_none
from mergeops.sources.training_runs import TrainingRuns

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

EXTERNAL = "mlflow.model.isExternal"
CHECKPOINT_URI = "mergeops.checkpoint_uri"


@dataclass
class Search:
    """One run's candidates, looked for stage by stage."""

    store: TrainingRuns
    run: Run
    models: Sequence[LoggedModel]
    """LoggedModels that the run made, the newest first."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the candidates seen so far."""
    artifacts: list[str] = field(default_factory=list)
    """What lies in the root of the run's artifacts, where it was looked at."""
    _of_others: dict[str, str] = field(default_factory=dict)
    """Output directory -> a checkpoint there that another run wrote."""

    def stages(self) -> Iterator[list[CheckpointCandidate]]:
        """The candidates of each stage, newest first."""
        yield self._guarded(self._tagged)
        yield self._guarded(self._logged_models)
        yield self._guarded(self._artifacts)
        yield self._guarded(self._output_directories)
        yield self._guarded(self._pointers)

    def best(self) -> CheckpointChoice | None:
        """The best whole checkpoint of the first stage that has one: what trainer_state.json calls
        the best, else the one with the best value of the run's own metric, else what the run's tag
        says, else the newest.

        Raises:
            SourceError: nothing says which of several it is.
        """
        for candidates in self.stages():
            newest = self._first_whole(candidates)
            if newest is None:
                continue
            names = tuple(c.name for c in candidates if c.name)
            for named, why, value in self._ranked(newest, candidates):
                is_newest = named is newest.candidate
                best = newest if is_newest else self._first_whole([named])
                if best is None:
                    continue
                if value is not None:
                    self._check_alone(named, candidates)
                from_newest = TRAINER_STATE in why and not is_newest
                more = f" of {newest.candidate.name}" if from_newest else ""
                return self._chosen(best, why + more, names, value)
            self._check_alone(newest.candidate, candidates)
            return self._chosen(newest, "newest whole one", names)
        return None

    def _ranked(
        self, newest: CheckpointChoice, candidates: Sequence[CheckpointCandidate]
    ) -> Iterator[tuple[CheckpointCandidate, str, tuple[str, float] | None]]:
        """Which one is the best, who says so, and its value; the first that is whole is taken."""
        said = str(newest.state.get("best_model_checkpoint") or "").rstrip("/")
        for candidate in candidates:
            if candidate.name and f"/{said}".endswith(f"/{candidate.name}"):
                yield candidate, f"best by {TRAINER_STATE}", None
        for candidate in candidates:
            if candidate.is_lowest:
                yield candidate, f"best by the link {LOWEST}", None
        for metric in run_metrics(self.store, self.run, [c.model for c in candidates]):
            scored, where = self._scores(metric, newest, candidates)
            if not scored:
                continue
            # Of equal ones the newest: sorting keeps their order.
            for value, candidate in sorted(scored, key=lambda pair: metric.rank(pair[0])):
                yield candidate, f"{metric.best} {where}", (metric.name, value)
            break
        # Last: of a run that was killed it may be older than the newest checkpoint.
        tagged = self.run.data.tags.get(RunTags.BEST)
        for candidate in candidates:
            if tagged and candidate.name == tagged:
                yield candidate, f"best by tag {RunTags.BEST}", None

    def _scores(
        self, metric: RunMetric, newest: CheckpointChoice, candidates: Sequence[CheckpointCandidate]
    ) -> tuple[list[tuple[float, CheckpointCandidate]], str]:
        """The metric of each candidate, from the first place that has it of any: the newest's
        trainer state, what the run logged, the LoggedModels themselves."""

        def by_step(values: dict[int, float]) -> list[tuple[float, CheckpointCandidate]]:
            return [(values[c.step], c) for c in candidates if c.step in values]

        if scored := by_step(logged_values(newest.state, metric.name)):
            return scored, f"in {TRAINER_STATE}"
        if len(candidates) < 2:
            return [], ""
        if scored := by_step(history_of(self.store, self.run, metric)):
            return scored, "that the run logged"
        on_models = [(value_on(c.model, metric), c) for c in candidates if c.model is not None]
        return [(v, c) for v, c in on_models if v is not None], "of its LoggedModels"

    def _check_alone(
        self, chosen: CheckpointCandidate, candidates: Sequence[CheckpointCandidate]
    ) -> None:
        """Refuse to choose among saves of one step, or of none, that lie beside each other: trials
        of a search, or artifacts of any name.

        Raises:
            SourceError: more than one of them may be meant.
        """
        if chosen.model is not None or not chosen.name:
            return
        depth = chosen.name.count("/")
        alike = [
            c
            for c in candidates
            if c.order == chosen.order and c.name.count("/") == depth and c.name
            if c is chosen or self._first_whole([c]) is not None
        ]
        if len(alike) > 1:
            names = ", ".join(c.name for c in alike)
            raise SourceError(
                f"of several checkpoints ({chosen.found_by}) nothing says which is the best or the "
                f"newest; name one: {names} (runs:/{self.run.info.run_id}/NAME)"
            )

    def named(self, name: str) -> CheckpointChoice | None:
        """The whole checkpoint of this name; of several LoggedModels of one name, the newest."""
        for candidates in self.stages():
            matches = [c for c in candidates if c.name == name]
            created = {id(c): c.model.creation_timestamp for c in matches if c.model is not None}
            matches.sort(key=lambda c: -created.get(id(c), 0))
            whole = self._first_whole(matches or self._inside(name, candidates))
            if whole is not None:
                return self._chosen(whole, "named")
        return None

    def names(self) -> list[str]:
        """Every name that ``named`` may be asked for."""
        names = [c.name for stage in self.stages() for c in stage if c.name]
        return list(dict.fromkeys(names))

    def _inside(
        self, path: str, candidates: Sequence[CheckpointCandidate]
    ) -> list[CheckpointCandidate]:
        """The directory that a path names inside a candidate: checkpoint-4/math."""
        return [
            dataclasses.replace(c, name=path, directory=c.directory.inside(path[len(c.name) + 1 :]))
            for c in candidates
            if c.name and path.startswith(f"{c.name}/")
        ]

    def _chosen(
        self,
        choice: CheckpointChoice,
        why: str,
        others: Sequence[str] = (),
        value: tuple[str, float] | None = None,
    ) -> CheckpointChoice:
        skipped = tuple(dict.fromkeys(self.problems))
        return dataclasses.replace(
            choice,
            why=why,
            skipped=skipped,
            others=tuple(dict.fromkeys(others)),
            value=value,
            is_name_shared=others.count(choice.candidate.name) > 1,
        )

    def _first_whole(self, candidates: Sequence[CheckpointCandidate]) -> CheckpointChoice | None:
        for candidate in candidates:
            try:
                location = find_checkpoint(candidate.directory)
                if location is None:
                    of = "" if candidate.model is None else f"LoggedModel {candidate.name}: "
                    self.problems.append(f"{of}{why_none(candidate.directory)}")
                    continue
                check_whole(location.directory, location.contents.kind)
                state = state_of(candidate.directory, location)
            except SourceError as error:
                self.problems.append(str(error))
                continue
            if candidate.in_output_dir and (problem := self._whose(candidate, location, state)):
                self.problems.append(problem)
                continue
            return CheckpointChoice(candidate, location, state)
        return None

    def _whose(
        self, candidate: CheckpointCandidate, location: Location, state: dict[str, Any]
    ) -> str | None:
        """Why a checkpoint that others may have written is not this run's; None where it is."""
        shown = location.directory.shown
        writer = writer_of(candidate.directory) or writer_of(location.directory)
        if writer is not None:
            ours = writer == self.run.info.run_id
            return None if ours else f"{shown} was written by run {writer}"
        facts = ownership(self.store, self.run, state) if state else Ownership()
        root = candidate.directory.shown.removesuffix(candidate.name)
        if facts.problem is not None:
            if not facts.is_continued:
                self._of_others.setdefault(root, shown)
            return f"{shown} was written by another run: {facts.problem}"
        if not facts.is_proven and root in self._of_others:
            return (
                f"{shown} may be of the run that wrote {self._of_others[root]}: no loss in a "
                f"{TRAINER_STATE} there says whose it is; if it is this run's, set its tag "
                f"{CHECKPOINT_URI} to it"
            )
        if candidate.needs_proof and not facts.is_proven:
            return (
                f"{shown} may be anybody's: {candidate.found_by} is relative, and no loss in a "
                f"{TRAINER_STATE} there is one that this run logged; if it is the run's, set its "
                f"tag {CHECKPOINT_URI} to it"
            )
        return None

    def _guarded(
        self, stage: Callable[[], Iterator[CheckpointCandidate]]
    ) -> list[CheckpointCandidate]:
        """All of one stage; a store that is gone for it does not hide what another finds."""
        try:
            return sorted(stage(), key=lambda c: c.order, reverse=True)
        except SourceError as error:
            self.problems.append(str(error))
            return []

    def _tagged(self) -> Iterator[CheckpointCandidate]:
        uri = self.run.data.tags.get(CHECKPOINT_URI)
        if uri:
            yield from _pointed_at(uri, self.store.open(uri), f"tag {CHECKPOINT_URI}")

    def _logged_models(self) -> Iterator[CheckpointCandidate]:
        for model in (*self.models, *self.store.other_outputs(self.run, self.models)):
            if is_external(model):
                continue
            if str(model.status) != "READY":
                self.problems.append(
                    f"LoggedModel {model.name} ({model.model_id}) is {model.status}: its upload "
                    "did not finish"
                )
                continue
            directory, found_by = self.store.open(model.artifact_location), _called(model)
            step, order = step_of(model.name)
            if order < 0 and (step := step_on(model, self.run)) is not None:
                order = step
            yield CheckpointCandidate(model.name, directory, found_by, model, step, order)

    def _artifacts(self) -> Iterator[CheckpointCandidate]:
        root = self.store.open(self.run.info.artifact_uri)
        entries = root.entries()
        self.artifacts += [entry.name for entry in entries]
        for save in saves_in(root, entries):
            yield CheckpointCandidate(
                save.path, save.directory, "run artifacts", step=save.step, order=save.order
            )

    def _output_directories(self) -> Iterator[CheckpointCandidate]:
        for said in output_directories(self.store, self.run):
            is_reachable = False
            for path, is_here in self.store.nearby(said.path):
                root = LocalDirectory(path)
                entries = root.entries()
                is_reachable = is_reachable or bool(entries)
                saves = list(saves_in(root, entries))
                for save in saves:
                    yield CheckpointCandidate(
                        save.path,
                        save.directory,
                        said.found_by,
                        step=save.step,
                        order=save.order,
                        in_output_dir=True,
                        needs_proof=is_here,
                    )
                if entries and not saves:
                    self.problems.append(f"{said.found_by} is {said.path}, and {why_none(root)}")
            if not is_reachable:
                tags = self.run.data.tags
                host = f" on {tags[RunTags.HOST]}" if RunTags.HOST in tags else ""
                written = tags.get(RunTags.CHECKPOINTS, "").split()
                held = f"; it was given {', '.join(written[-3:])}" if written else ""
                self.problems.append(
                    f"{said.found_by} is {said.path}{host}, which is empty or not "
                    f"reachable from here{held}; if it moved, map it with path_map"
                )

    def _pointers(self) -> Iterator[CheckpointCandidate]:
        # Last, since what adopt once pointed at may have newer checkpoints beside it by now.
        for model in self.models:
            uri = model.tags.get(CHECKPOINT_URI)
            if uri and is_external(model):
                found_by = f"tag {CHECKPOINT_URI} of {_called(model)}"
                for candidate in _pointed_at(uri, self.store.open(uri), found_by):
                    yield dataclasses.replace(candidate, model=model, in_output_dir=True)


def _pointed_at(uri: str, directory: Directory, found_by: str) -> Iterator[CheckpointCandidate]:
    """What a tag leads to: the numbered saves of an output directory, or one checkpoint, which is
    called by the end of the URI."""
    saves = [save for save in saves_in(directory) if save.order >= 0]
    for save in saves:
        yield CheckpointCandidate(
            save.path, save.directory, found_by, step=save.step, order=save.order
        )
    if not saves:
        name = uri.rstrip("/").rsplit("/", 1)[-1]
        step, order = step_of(name)
        yield CheckpointCandidate(name, directory, found_by, step=step, order=order)


def is_external(model: LoggedModel) -> bool:
    """Whether MLflow holds only a pointer to the model."""
    return bool(model.tags.get(EXTERNAL) == "true")


def _called(model: LoggedModel) -> str:
    return f"LoggedModel {model.model_id}"
