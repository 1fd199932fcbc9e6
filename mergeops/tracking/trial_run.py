"""The run of one plan: each method is a step that may be repeated, and logged later.

Where the server goes away, a step's facts are kept on disk instead, see ``tracking.pending``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mergeops.errors import AwayError, TrackingError
from mergeops.recipe import Recipe
from mergeops.secrets import redact
from mergeops.tracking import packaging, registry, trial_page
from mergeops.tracking import parents as tracked_parents
from mergeops.tracking.client import is_missing
from mergeops.tracking.keys import model_name, tag_value
from mergeops.tracking.ownership import check_owner, elect_model
from mergeops.tracking.pending import Pending
from mergeops.tracking.scores import log_scores

if TYPE_CHECKING:
    from mergeops.evaluate import Scores
    from mergeops.report.leaderboard import Leaderboard
    from mergeops.sources import Source
    from mergeops.tracking.connection import Tracking

Result = TypeVar("Result")


@dataclass
class Trial:
    """The run of one plan."""

    tracking: Tracking
    run_id: str
    """Empty where the server was away before there was a run."""
    name: str
    plan_digest: str
    complete: bool
    """Whether an earlier command finished it; only what is new is logged then."""
    model_id: str | None = None
    """The merge's LoggedModel, once ``log_model`` has made it."""
    recipe: Recipe | None = None
    """None for a trial that was reopened by its run."""
    parents: Mapping[str, Source] = field(default_factory=dict)
    """Base, where there is one, and sources."""
    board: Leaderboard | None = None
    """What ``log_report`` was given."""
    owner: str | None = None
    """This process's name on the run; None where nothing is checked."""
    pending: Pending | None = None
    """What is kept on disk where the server goes away; None for a reopened trial."""
    away: AwayError | None = None
    """Why nothing reaches the server any more."""

    def log_model(
        self,
        checkpoint: Path,
        *,
        weights_sha256: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> str | None:
        """Log the merged checkpoint as this run's one output model; READY once all of it is there.

        Args:
            checkpoint: a finished directory in Hugging Face layout.
            weights_sha256: digest of its weights, where the caller knows it.
            progress: called with (bytes done, bytes in all).

        Returns:
            The LoggedModel's id; None where the server is away.
        """
        if weights_sha256 is None:
            from mergeops.checkpoint import weights_sha256 as digest_of

            weights_sha256 = digest_of(checkpoint)
        digest = weights_sha256
        if self.pending is not None:
            self.pending.checkpoint = checkpoint.absolute()
            self.pending.weights_sha256 = digest
        return self.now_or_later(lambda: self._log_model(checkpoint, digest, progress))

    def _log_model(
        self,
        checkpoint: Path,
        weights_sha256: str,
        progress: Callable[[int, int], None] | None,
    ) -> str:
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
        self.set_tags(model_id=self.model_id, weights_sha256=weights_sha256)
        packaging.upload(self.tracking, model, checkpoint, progress=progress)
        client.finalize_logged_model(self.model_id, "READY")
        return self.model_id

    def _log_output(self, model_id: str) -> None:
        from mlflow.entities import LoggedModelOutput

        def is_logged() -> bool:
            outputs = self.tracking.client.get_run(self.run_id).outputs
            return (
                model_id in {found.model_id for found in outputs.model_outputs}
                if outputs
                else False
            )

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

    def log_parent(self, source: Source, scores: Scores) -> None:
        """Log a base or source with its scores; it has a run of its own."""
        if self.pending is not None:
            self.pending.parents[source.name] = scores
        self.now_or_later(lambda: tracked_parents.log_parent(self.tracking, source, scores))

    def log_scores(self, scores: Scores) -> None:
        """Log scores onto the run and its model; keys of the confirm part begin ``confirm/``."""
        if self.pending is not None:
            self.pending.scores = scores
        self.now_or_later(lambda: self._log_scores(scores))

    def _log_scores(self, scores: Scores) -> None:
        if self.model_id is None:
            raise TrackingError(f"trial {self.name!r} has no model yet; log it before its scores")
        log_scores(self.tracking, self.run_id, self.model_id, scores)

    def log_report(self, board: Leaderboard) -> None:
        """Log the merge among its parents: leaderboard.md, leaderboard.json, plots/scores.png."""
        self.board = board
        trial_page.log_leaderboard(self, board)

    def log_text(self, text: str, artifact: str) -> None:
        """Write an artifact, e.g. ``leaderboard.md``, ``model_card.md`` or ``lineage.svg``."""
        client = self.tracking.client
        self.now_or_later(
            lambda: client.log_text(self.run_id, text, artifact),
            (artifact, lambda path: path.write_text(text, encoding="utf-8")),
        )

    def log_json(self, value: Any, artifact: str) -> None:
        """Write a value of JSON types, e.g. ``gate.json``, with credentials taken out of URIs."""
        self.log_text(json.dumps(redact(value), indent=2, ensure_ascii=False) + "\n", artifact)

    def log_figure(self, figure: Any, artifact: str) -> None:
        """Write a matplotlib figure, e.g. ``plots/scores.png``."""
        client, save = self.tracking.client, {"dpi": 150, "bbox_inches": "tight"}
        self.now_or_later(
            lambda: client.log_figure(self.run_id, figure, artifact, save_kwargs=save),
            (artifact, lambda path: figure.savefig(path, **save)),
        )

    def log_file(self, path: Path, artifact: str) -> None:
        """Write a file as an artifact; its name is the artifact's."""
        folder = artifact.rpartition("/")[0] or None
        client = self.tracking.client
        self.now_or_later(lambda: client.log_artifact(self.run_id, str(path), folder))

    def describe(self, markdown: str) -> None:
        """Set the text at the head of the run's page."""
        client, text = self.tracking.client, tag_value(markdown)
        self.now_or_later(lambda: client.set_tag(self.run_id, "mlflow.note.content", text))

    def register(
        self,
        name: str | None = None,
        *,
        role: str = "merge",
        status: str = "candidate",
        description: str = "",
    ) -> int | None:
        """Register the merge, or find its version; then write the run's lineage, card and text.

        Args:
            name: the registered model; None takes ``tracking.registered_model``.

        Returns:
            The version; None where the server is away.
        """
        wanted = {
            "name": name or self.tracking.spec.registered_model,
            "role": role,
            "status": status,
            "description": description or self.name,
        }
        if self.pending is not None:
            self.pending.registration = wanted
        return self.now_or_later(lambda: self._register(**wanted))

    def _register(self, name: str, **facts: str) -> int:
        if self.model_id is None:
            raise TrackingError(f"trial {self.name!r} has no model yet; log it before registering")
        version = registry.register(self.tracking, name, self.run_id, self.model_id, **facts)
        if self.recipe is not None:
            trial_page.log_page(self, self.recipe, dict(self.parents), version)
        return version

    def now_or_later(
        self,
        step: Callable[[], Result],
        file: tuple[str, Callable[[Path], object]] | None = None,
    ) -> Result | None:
        """Do a step; where the server is away, keep the trial, and the step's file, for later."""
        if self.away is None:
            try:
                self.check_owner()
                return step()
            except AwayError as error:
                if self.pending is None:
                    raise
                self.away = error
                self.pending.reason = str(error)
        if self.pending is not None:
            if file is not None:
                self.pending.write_artifact(*file)
            self.pending.write()
        return None

    def finish(self) -> None:
        """Mark the run as complete and end it; where the server is away, say what is kept.

        Raises:
            AwayError: the trial is kept on disk, unless the recipe asked for that.
        """
        self.now_or_later(self._finish)
        if self.pending is None:
            return
        if self.away is None:
            self.pending.remove()
        elif not self.tracking.spec.offline:
            raise AwayError(
                f"{self.away}; or `mergeops sync`, which logs the trial that is kept in "
                f"{self.pending.folder} and neither merges nor scores"
            ) from self.away

    def _finish(self) -> None:
        client = self.tracking.client
        if not self.complete:
            self.set_tags(complete="true")
            self.complete = True
        if client.get_run(self.run_id).info.status != "FINISHED":
            client.set_terminated(self.run_id, "FINISHED")

    def fail(self, error: BaseException) -> None:
        """Mark an unfinished run FAILED (KILLED where the user stopped it) and its model FAILED."""
        if self.complete or self.away is not None or isinstance(error, AwayError):
            return
        client = self.tracking.client
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        text = " ".join(str(error).split()) or type(error).__name__
        try:
            self.check_owner()
            self.set_tags(error=f"{type(error).__name__}: {text}")
            model = self._find_model()
            if model is not None and str(model.status) == "PENDING":
                client.finalize_logged_model(model.model_id, "FAILED")
            client.set_terminated(self.run_id, "KILLED" if killed else "FAILED")
        except TrackingError:
            # The error that stopped the trial matters more; the next command goes on anyway.
            return

    def check_owner(self) -> None:
        """Refuse to write where another process took the trial over, or its run was deleted."""
        if self.owner is not None:
            check_owner(self.tracking, self.run_id, self.name, self.owner)

    def _find_model(self) -> Any:
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

    def set_tags(self, **tags: str) -> None:
        """Set tags of the run, each below ``mergeops.``."""
        from mlflow.entities import RunTag

        self.tracking.client.log_batch(
            self.run_id,
            tags=[RunTag(f"mergeops.{name}", tag_value(value)) for name, value in tags.items()],
        )
