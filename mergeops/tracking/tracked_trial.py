"""The run of one plan, whose every step may be repeated, and is kept for later where need be."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from mergeops.checkpoint import is_adapter
from mergeops.errors import AwayError, TrackingError
from mergeops.recipe import Recipe
from mergeops.redact import redact
from mergeops.report import Leaderboard, Standing
from mergeops.scores import Scores
from mergeops.sources import Source
from mergeops.store import (
    AdapterBase,
    flavour_of,
    is_missing,
    key,
    model_name,
    own_tags,
    upload,
)
from mergeops.tracking.logged_run import LoggedRun
from mergeops.tracking.ownership import OWNER, elect_model
from mergeops.tracking.parents import log_parent
from mergeops.tracking.pending import Pending
from mergeops.tracking.score_log import are_logged, log_scores

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

Facts = ParamSpec("Facts")
Result = TypeVar("Result")
Step = Callable[Concatenate["TrackedTrial", Facts], Result]


def _nothing(kept: Pending, *args: object, **kwargs: object) -> None:
    """Keep nothing of the step's own."""


def step(
    note: Callable[..., object] = _nothing, instead: Callable[..., object] = _nothing
) -> Callable[[Step[Facts, Result]], Step[Facts, Result | None]]:
    """Make a function a step of a trial: done now, or kept on disk for ``sync``.

    Once the server is away, no step is done any more: the trial is kept, see ``Pending``, and the
    step's result is None.

    Args:
        note: takes down the step's facts before it is done, since the server may go any time.
        instead: keeps the step's file where the server is away.
    """

    def decorate(do: Step[Facts, Result]) -> Step[Facts, Result | None]:
        @functools.wraps(do)
        def do_or_keep(
            trial: TrackedTrial, /, *args: Facts.args, **kwargs: Facts.kwargs
        ) -> Result | None:
            kept = trial.pending
            if kept is not None:
                note(kept, *args, **kwargs)
            if trial.away is None:
                try:
                    trial.check_owner()
                    return do(trial, *args, **kwargs)
                except AwayError as error:
                    if kept is None:
                        raise
                    trial.away = error
                    kept.reason = str(error)
            if kept is not None:
                instead(kept, *args, **kwargs)
                kept.write()
            return None

        return do_or_keep

    return decorate


@dataclass
class TrackedTrial(LoggedRun):
    """The run of one plan; ``run_id`` is empty where the server was away before there was one."""

    name: str
    plan_digest: str
    complete: bool
    """Whether an earlier command finished it; only what is new is logged then."""
    model_id: str | None = None
    """The merge's LoggedModel, once ``log_model`` has made it."""
    board: Leaderboard | None = None
    """What ``log_leaderboard`` was given."""
    standing: Standing | None = None
    """This too."""
    owner: str | None = None
    """This process's name on the run; None where nothing is checked."""
    pending: Pending | None = None
    """Recipe, parents and what else is kept on disk where the server goes away; None for a trial
    that was reopened by its run."""
    away: AwayError | None = None
    """Why nothing reaches the server any more."""

    @step(note=Pending.note_model)
    def log_model(
        self,
        checkpoint: Path,
        weights_sha256: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> str:
        """Log the merged checkpoint as this run's one output model; READY once all of it is there.

        Args:
            checkpoint: a finished directory in Hugging Face layout.
            weights_sha256: digest of its weights.
            progress: called with (bytes done, bytes in all).

        Returns:
            The LoggedModel's id; None where the server is away.
        """
        client = self.tracking.client
        model = self._find_model()
        if model is not None and str(model.status) == "READY":
            self.model_id = model.model_id
            return self.model_id
        run = client.get_run(self.run_id)
        if model is None:
            client.create_logged_model(
                self.tracking.experiment_id,
                name=model_name(self.name),
                source_run_id=self.run_id,
                tags={
                    "mergeops.role": "merge",
                    "mergeops.plan_digest": self.plan_digest,
                    "mergeops.weights_sha256": weights_sha256,
                },
                params={"role": "merge", **run.data.params},
                model_type="merge",
            )
            # Not the one that was just made: another process may have been faster.
            model = elect_model(self.tracking, self.run_id, self.plan_digest)
            if model is None:
                raise TrackingError(f"the model of run {self.run_id} was deleted as it was made")
        self.model_id = model.model_id
        self._log_output(self.model_id)
        self.keep(model_id=self.model_id, weights_sha256=weights_sha256)
        upload(self.tracking, model, checkpoint, base=self._base_of(checkpoint), progress=progress)
        client.finalize_logged_model(self.model_id, "READY")
        return self.model_id

    def flavour_note(self, checkpoint: Path) -> str:
        """What of the logged model does not work, and what does."""
        return flavour_of(checkpoint, self._base_of(checkpoint)).note

    def _base_of(self, checkpoint: Path) -> AdapterBase | None:
        """The model that an adapter of this trial is for: the recipe's base."""
        base = self.pending.base if self.pending else None
        if base is None or not is_adapter(checkpoint):
            return None
        return AdapterBase(base.path.absolute(), str(redact(base.uri)))

    def _log_output(self, model_id: str) -> None:
        from mlflow.entities import LoggedModelOutput

        def is_logged() -> bool:
            outputs = self.tracking.client.get_run(self.run_id).outputs
            logged = outputs.model_outputs if outputs else []
            return model_id in {output.model_id for output in logged}

        if is_logged():
            # A second time would be refused.
            return
        try:
            self.tracking.client.log_outputs(self.run_id, [LoggedModelOutput(model_id, 0)])
        except AwayError:
            raise
        except TrackingError:
            # MLflow's client asks again when an answer is lost.
            if not is_logged():
                raise

    @step(note=Pending.note_parent)
    def log_parent(self, source: Source, scores: Scores) -> None:
        """Log a base or source with its scores; it has a run of its own."""
        log_parent(self.tracking, source, scores)

    @step(note=Pending.note_measures)
    def log_measures(self, measures: Mapping[str, float]) -> None:
        """Log numbers of the model's making as metrics, once."""
        from mlflow.entities import Metric

        logged = self.tracking.client.get_run(self.run_id).data.metrics
        now = int(time.time() * 1000)
        new = [Metric(key(n), v, now, 0) for n, v in measures.items() if key(n) not in logged]
        if new:
            self.tracking.client.log_batch(self.run_id, metrics=new)

    @step(note=Pending.note_scores)
    def log_scores(self, scores: Scores) -> None:
        """Log scores onto the run and its model; keys of the confirm part begin ``confirm/``."""
        if self.model_id is None:
            raise TrackingError(f"trial {self.name!r} has no model yet; log it before its scores")
        # The gate asks what the recipe says, and the scores of a later command may be on other
        # tasks, or by other metrics, than the first one had.
        if self.complete and self.pending and not are_logged(self.tracking, self.run_id, scores):
            self.log_recipe(self.pending.recipe)
        log_scores(self.tracking, self.run_id, self.model_id, scores)

    def log_recipe(self, recipe: Recipe) -> None:
        """Write ``recipe.yaml``, without what is secret."""
        import yaml

        raw = recipe.to_dict()
        # A webhook's address and a command's arguments are secrets as a whole, and belong to the
        # promotion, not to the merge.
        raw["promote"].pop("hooks")
        self.log_text(yaml.safe_dump(redact(raw), sort_keys=False), "recipe.yaml")
        self.keep(recipe_sha256=recipe.sha256())

    log_text = step(instead=Pending.write_text)(LoggedRun.log_text)
    log_figure = step(instead=Pending.write_figure)(LoggedRun.log_figure)
    describe = step()(LoggedRun.describe)

    @step()
    def log_file(self, path: Path, artifact: str) -> None:
        """Write a file as an artifact; its name is the artifact's."""
        folder = artifact.rpartition("/")[0] or None
        self.tracking.client.log_artifact(self.run_id, str(path), folder)

    def finish(self) -> None:
        """Mark the run as complete and end it; where the server is away, say what is kept.

        Raises:
            AwayError: the trial is kept on disk, unless the recipe asked for that.
        """
        self._finish()
        if self.pending is None:
            return
        if self.away is None:
            self.pending.remove()
        elif not self.tracking.spec.offline:
            raise AwayError(
                f"{self.away}; or `mergeops sync`, which logs the trial that is kept in "
                f"{self.pending.folder} and neither merges nor scores"
            ) from self.away

    @step()
    def _finish(self) -> None:
        client = self.tracking.client
        if not self.complete:
            self.keep(complete="true")
            self.complete = True
        if client.get_run(self.run_id).info.status != "FINISHED":
            client.set_terminated(self.run_id, "FINISHED")

    def fail(self, error: BaseException) -> None:
        """Mark an unfinished run FAILED (KILLED where the user stopped it) and its model FAILED."""
        if self.complete or self.away is not None or isinstance(error, AwayError):
            return
        text = " ".join(str(error).split()) or type(error).__name__
        try:
            self.check_owner()
            self.set_tags(error=f"{type(error).__name__}: {text}")
            model = self._find_model()
            if model is not None and str(model.status) == "PENDING":
                self.tracking.client.finalize_logged_model(model.model_id, "FAILED")
            self.end_after(error)
        except TrackingError:
            # The error that stopped the trial matters more; the next command goes on anyway.
            return

    def check_owner(self) -> None:
        """Refuse to write where another process took the trial over, or its run was deleted."""
        if self.owner is None:
            return
        run = self.tracking.client.get_run(self.run_id)
        if run.info.lifecycle_stage == "deleted":
            raise TrackingError(
                f"run {self.run_id} of the trial {self.name!r} was deleted, in MLflow or by "
                "another process that logs the same plan; finished work is kept, so run the same "
                "command again"
            )
        writer = own_tags(run.data.tags).get(f"mergeops.{OWNER}", self.owner)
        if writer != self.owner:
            host, process, *_ = [*writer.split(":"), "?"]
            raise TrackingError(
                f"the trial {self.name!r} was taken over by process {process} on {host}; this one "
                "stops, finished work is kept"
            )

    def _find_model(self) -> LoggedModel | None:
        client = self.tracking.client
        if self.model_id is not None:
            try:
                return client.get_logged_model(self.model_id)
            except TrackingError as error:
                if not is_missing(error):
                    raise
                raise TrackingError(
                    f"model {self.model_id} of run {self.run_id} was deleted in MLflow; delete the "
                    "run too, then run the same command again to log the trial anew"
                ) from error
        return elect_model(self.tracking, self.run_id, self.plan_digest)
