"""One trial is one run: parents in, merge out, scores on both; every step may be repeated.

The run is found by the plan digest in its tags, so a killed trial goes on where it was, and a
finished one is never logged twice. Where the server goes away, the trial goes on without it, and is
kept on disk for ``mergeops sync``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.errors import AwayError, TrackingError
from mergeops.recipe import Recipe
from mergeops.schema import read_yaml
from mergeops.sources import Source
from mergeops.store import Tracking, hidden_facts, only_one, own_tags
from mergeops.tracking.logged_run import create_run
from mergeops.tracking.ownership import OWNER, elect_run, new_owner
from mergeops.tracking.pending import Pending, folder_of
from mergeops.tracking.tracked_trial import TrackedTrial
from mergeops.tracking.trial_inputs import PARENT_RUN, log_trial_inputs, trial_tags

if TYPE_CHECKING:
    from mlflow.entities import Run


def open_trial(
    tracking: Tracking,
    recipe: Recipe,
    plan_digest: str,
    sources: Mapping[str, Source],
    base: Source | None,
    *,
    plan: Mapping[str, Any],
    name: str,
    parent_run_id: str | None = None,
) -> AbstractContextManager[TrackedTrial]:
    """The run of a plan for the block: found by its digest, or started.

    The run ends FINISHED and complete when the block does; FAILED on an error, KILLED on Ctrl-C. A
    run that was not complete is set RUNNING again and counted in the tag ``mergeops.resumed``.

    Args:
        plan: the plan as JSON types, kept as ``plan.json``.
        parent_run_id: run of the search that the trial belongs to.

    Raises:
        TrackingError: the server is gone, or another process here is at work on the same plan.
    """
    kept = Pending(
        folder=folder_of(
            Path(recipe.output.dir),
            plan_digest,
            tracking.place,
            tracking.registry_place,
            recipe.tracking.experiment,
        ),
        name=name,
        plan_digest=plan_digest,
        recipe=recipe,
        plan=plan,
        sources=sources,
        base=base,
        uri=tracking.uri,
        workspace=tracking.workspace,
        registry_uri="" if tracking.registry_uri == tracking.uri else tracking.registry_uri,
        parent_run_id=parent_run_id,
    )
    return open_kept(tracking, kept)


@contextmanager
def open_kept(tracking: Tracking, kept: Pending) -> Iterator[TrackedTrial]:
    """The run of a plan for the block, as ``open_trial``.

    Args:
        kept: what the trial is made of, and what was kept of it where the server was away.
    """
    identity = (tracking.place, tracking.experiment_id, kept.plan_digest)
    with only_one(f"the trial {kept.name!r}", *identity):
        try:
            trial = _open(tracking, kept)
        except AwayError as error:
            trial = TrackedTrial(
                tracking, "", kept.name, kept.plan_digest, complete=False, away=error
            )
            kept.reason = str(error)
        trial.pending = kept
        try:
            if not trial.complete:
                log_trial_inputs(trial, kept)
            yield trial
            trial.finish()
        except BaseException as error:
            trial.fail(error)
            raise


def reopen(tracking: Tracking, run_id: str) -> TrackedTrial:
    """A trial by its run, to log more onto it.

    Raises:
        TrackingError: the run is none of a merge.
    """
    run = tracking.client.get_run(run_id)
    tags = own_tags(run.data.tags)
    digest = tags.get("mergeops.plan_digest")
    if tags.get("mergeops.role") != "merge" or digest is None:
        raise TrackingError(f"run {run_id} is no mergeops trial; its tag mergeops.role differs")
    return _trial_of(tracking, run, digest)


def read_recipe(tracking: Tracking, run_id: str) -> dict[str, Any]:
    """The recipe that a trial kept as ``recipe.yaml``.

    Raises:
        TrackingError: it is not there, or is no mapping.
    """
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        path = tracking.client.download_artifacts(run_id, "recipe.yaml", folder)
        try:
            raw = read_yaml(Path(path).read_bytes())
        except ValueError as error:
            raise TrackingError(f"recipe.yaml of run {run_id} is no YAML: {error}") from error
    if not isinstance(raw, dict):
        raise TrackingError(f"recipe.yaml of run {run_id} holds no mapping")
    return raw


def _open(tracking: Tracking, kept: Pending) -> TrackedTrial:
    client = tracking.client
    run, owner = elect_run(tracking, kept.plan_digest), new_owner()
    if run is None:
        created = create_run(
            tracking, kept.name, {**trial_tags(kept), **hidden_facts({OWNER: owner})}
        )
        # Not simply the one that was made: another machine may have been faster.
        run = elect_run(tracking, kept.plan_digest) or created
    if kept.parent_run_id and PARENT_RUN not in run.data.tags:
        # The recipe was run by itself before the search came to it.
        client.set_tag(run.info.run_id, PARENT_RUN, kept.parent_run_id)
    trial = _trial_of(tracking, run, kept.plan_digest)
    if trial.complete:
        return trial
    trial.owner = owner
    tags = own_tags(run.data.tags)
    if tags.get(f"mergeops.{OWNER}") != owner:
        count = int(tags.get("mergeops.resumed", "0")) + 1
        trial.keep(**{OWNER: owner, "resumed": str(count)})
        client.update_run(run.info.run_id, "RUNNING")
        if "mergeops.error" in tags:
            client.delete_tag(run.info.run_id, "mergeops.error")
    return trial


def _trial_of(tracking: Tracking, run: Run, plan_digest: str) -> TrackedTrial:
    tags = own_tags(run.data.tags)
    return TrackedTrial(
        tracking,
        run.info.run_id,
        run.info.run_name or run.info.run_id,
        plan_digest,
        complete=tags.get("mergeops.complete") == "true",
        model_id=tags.get("mergeops.model_id"),
    )
