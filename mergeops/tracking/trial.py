"""One trial is one run: parents in, merge out, scores on both. Every step may be repeated.

The run is found by the plan digest in its tags, so a killed trial goes on where it was, and a
finished one is never logged twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.errors import TrackingError
from mergeops.recipe import Recipe
from mergeops.tracking import packaging, registry, trial_inputs, trial_page
from mergeops.tracking.client import is_gone, is_missing
from mergeops.tracking.keys import model_name, redact, tag_value
from mergeops.tracking.lock import only_one
from mergeops.tracking.scores import log_scores, search_runs, with_tags

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mergeops.evaluate import Scores
    from mergeops.report.leaderboard import Leaderboard
    from mergeops.sources import Source
    from mergeops.tracking.connection import Tracking


@dataclass
class Trial:
    """The run of one plan."""

    tracking: Tracking
    run_id: str
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

    def log_model(
        self,
        checkpoint: Path,
        *,
        weights_sha256: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> str:
        """Log the merged checkpoint as this run's one output model; READY once all of it is there.

        Args:
            checkpoint: a finished directory in Hugging Face layout.
            weights_sha256: digest of its weights, where the caller knows it.
            progress: called with (bytes done, bytes in all).

        Returns:
            The LoggedModel's id.
        """
        from mlflow.entities import LoggedModelOutput

        client = self.tracking.client
        model = self._find_model()
        if model is not None and str(model.status) == "READY":
            self.model_id = model.model_id
            return self.model_id
        if weights_sha256 is None:
            from mergeops.checkpoint import weights_sha256 as digest_of

            weights_sha256 = digest_of(checkpoint)
        run = client.get_run(self.run_id)
        if model is None:
            model = client.create_logged_model(
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
        self.model_id = model.model_id
        outputs = run.outputs.model_outputs if run.outputs else []
        if self.model_id not in {output.model_id for output in outputs}:
            # A second time would be refused.
            client.log_outputs(self.run_id, [LoggedModelOutput(self.model_id, 0)])
        self.set_tags(model_id=self.model_id, weights_sha256=weights_sha256)
        packaging.upload(self.tracking, model, checkpoint, progress=progress)
        client.finalize_logged_model(self.model_id, "READY")
        return self.model_id

    def log_scores(self, scores: Scores) -> None:
        """Log scores onto the run and its model; keys of the confirm part begin ``confirm/``."""
        if self.model_id is None:
            raise TrackingError(f"trial {self.name!r} has no model yet; log it before its scores")
        log_scores(self.tracking, self.run_id, self.model_id, scores)

    def log_report(self, board: Leaderboard) -> None:
        """Log the merge among its parents: leaderboard.md, leaderboard.json, plots/scores.png."""
        self.board = board
        trial_page.log_leaderboard(self, board)

    def log_text(self, text: str, artifact: str) -> None:
        """Write an artifact, e.g. ``leaderboard.md``, ``model_card.md`` or ``lineage.svg``."""
        self.tracking.client.log_text(self.run_id, text, artifact)

    def log_json(self, value: Any, artifact: str) -> None:
        """Write a value of JSON types, e.g. ``gate.json``, with credentials taken out of URIs."""
        self.log_text(json.dumps(redact(value), indent=2, ensure_ascii=False) + "\n", artifact)

    def log_figure(self, figure: Any, artifact: str) -> None:
        """Write a matplotlib figure, e.g. ``plots/scores.png``."""
        save = {"dpi": 150, "bbox_inches": "tight"}
        self.tracking.client.log_figure(self.run_id, figure, artifact, save_kwargs=save)

    def describe(self, markdown: str) -> None:
        """Set the text at the head of the run's page."""
        self.tracking.client.set_tag(self.run_id, "mlflow.note.content", tag_value(markdown))

    def register(
        self,
        name: str | None = None,
        *,
        role: str = "merge",
        status: str = "candidate",
        description: str = "",
    ) -> int:
        """Register the merge, or find its version; then write the run's lineage, card and text.

        Args:
            name: the registered model; None takes ``tracking.registered_model``.

        Returns:
            The version.
        """
        if self.model_id is None:
            raise TrackingError(f"trial {self.name!r} has no model yet; log it before registering")
        version = registry.register(
            self.tracking,
            name or self.tracking.spec.registered_model,
            self.run_id,
            self.model_id,
            role=role,
            status=status,
            description=description or self.name,
        )
        if self.recipe is not None:
            trial_page.log_page(self, self.recipe, dict(self.parents), version)
        return version

    def finish(self) -> None:
        """Mark the run as complete and end it."""
        client = self.tracking.client
        if not self.complete:
            self.set_tags(complete="true")
            self.complete = True
        if client.get_run(self.run_id).info.status != "FINISHED":
            client.set_terminated(self.run_id, "FINISHED")

    def fail(self, error: BaseException) -> None:
        """Mark an unfinished run FAILED (KILLED where the user stopped it) and its model FAILED."""
        if self.complete or is_gone(error):
            return
        client = self.tracking.client
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        text = " ".join(str(redact(str(error))).split()) or type(error).__name__
        try:
            self.set_tags(error=f"{type(error).__name__}: {text}")
            model = self._find_model()
            if model is not None and str(model.status) == "PENDING":
                client.finalize_logged_model(model.model_id, "FAILED")
            client.set_terminated(self.run_id, "KILLED" if killed else "FAILED")
        except TrackingError:
            # The error that stopped the trial matters more; the next command goes on anyway.
            return

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
        found = client.search_logged_models(
            [self.tracking.experiment_id],
            with_tags(plan_digest=self.plan_digest, role="merge"),
        )
        own = [model for model in found if model.source_run_id == self.run_id]
        return min(own, key=lambda model: model.creation_timestamp, default=None)

    def set_tags(self, **tags: str) -> None:
        """Set tags of the run, each below ``mergeops.``."""
        from mlflow.entities import RunTag

        self.tracking.client.log_batch(
            self.run_id,
            tags=[RunTag(f"mergeops.{name}", tag_value(value)) for name, value in tags.items()],
        )


@contextmanager
def trial(
    tracking: Tracking,
    recipe: Recipe,
    plan_digest: str,
    sources: Mapping[str, Source],
    base: Source | None,
    *,
    plan: Mapping[str, Any],
    name: str,
    parent_run_id: str | None = None,
) -> Iterator[Trial]:
    """The run of a plan for the block: found by its digest, or started.

    The run ends FINISHED and complete when the block does; FAILED on an error, KILLED on Ctrl-C. A
    run that was not complete is set RUNNING again and counted in the tag ``mergeops.resumed``.

    Args:
        plan: the plan as JSON types, kept as ``plan.json``.
        parent_run_id: run of the search that the trial belongs to.

    Raises:
        TrackingError: the server is gone, or another process here is at work on the same plan.
    """
    with only_one(f"the trial {name!r}", tracking.uri, tracking.experiment_id, plan_digest):
        opened = _open(tracking, recipe, plan_digest, sources, name, parent_run_id)
        opened.recipe = recipe
        opened.parents = {**({"base": base} if base else {}), **sources}
        try:
            if not opened.complete:
                trial_inputs.log_inputs(opened, recipe, plan)
            yield opened
            opened.finish()
        except BaseException as error:
            opened.fail(error)
            raise


def reopen(tracking: Tracking, run_id: str) -> Trial:
    """A trial by its run, to log more onto it.

    Raises:
        TrackingError: the run is none of a merge.
    """
    run = tracking.client.get_run(run_id)
    digest = run.data.tags.get("mergeops.plan_digest")
    if run.data.tags.get("mergeops.role") != "merge" or digest is None:
        raise TrackingError(f"run {run_id} is no mergeops trial; its tag mergeops.role differs")
    return _trial_of(tracking, run, digest)


def read_recipe(tracking: Tracking, run_id: str) -> dict[str, Any]:
    """The recipe that a trial kept as ``recipe.yaml``.

    Raises:
        TrackingError: it is not there, or is no mapping.
    """
    import tempfile

    import yaml

    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        path = tracking.client.download_artifacts(run_id, "recipe.yaml", folder)
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise TrackingError(f"recipe.yaml of run {run_id} holds no mapping")
    return raw


def _open(
    tracking: Tracking,
    recipe: Recipe,
    plan_digest: str,
    sources: Mapping[str, Source],
    name: str,
    parent_run_id: str | None,
) -> Trial:
    from mlflow.entities import RunTag

    client = tracking.client
    wanted = with_tags(plan_digest=plan_digest, role="merge")
    found = search_runs(tracking, wanted)
    created = None
    if not found:
        tags = trial_inputs.tags(recipe, plan_digest, sources, name, parent_run_id)
        new = client.create_run(tracking.experiment_id, tags=tags, run_name=name)
        created = new.info.run_id
        found = search_runs(tracking, wanted)
    # Complete ones first, then the oldest, so that two machines that raced agree on one run.
    run = min(found, key=lambda r: r.data.tags.get("mergeops.complete") != "true")
    if created not in (None, run.info.run_id):
        client.delete_run(created)
    opened = _trial_of(tracking, run, plan_digest)
    if not opened.complete and run.info.run_id != created:
        count = int(run.data.tags.get("mergeops.resumed", "0")) + 1
        client.log_batch(run.info.run_id, tags=[RunTag("mergeops.resumed", str(count))])
        client.update_run(run.info.run_id, "RUNNING")
        if "mergeops.error" in run.data.tags:
            client.delete_tag(run.info.run_id, "mergeops.error")
    return opened


def _trial_of(tracking: Tracking, run: Run, plan_digest: str) -> Trial:
    tags = run.data.tags
    return Trial(
        tracking,
        run.info.run_id,
        run.info.run_name or run.info.run_id,
        plan_digest,
        complete=tags.get("mergeops.complete") == "true",
        model_id=tags.get("mergeops.model_id"),
    )
