"""One trial is one run: parents in, merge out, scores on both. Every step may be repeated.

The run is found by the plan digest in its tags, so a killed trial goes on where it was, and a
finished one is never logged twice. Where the server goes away, the trial goes on without it, and is
kept on disk for ``mergeops sync``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.errors import AwayError, TrackingError
from mergeops.recipe import Recipe
from mergeops.tracking import trial_inputs
from mergeops.tracking.keys import run_name
from mergeops.tracking.lock import only_one
from mergeops.tracking.ownership import OWNER, elect_run, new_owner
from mergeops.tracking.pending import Pending, folder_of
from mergeops.tracking.trial_inputs import PARENT_RUN
from mergeops.tracking.trial_run import Trial

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mergeops.sources import Source
    from mergeops.tracking.connection import Tracking


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
    kept_in: Path | None = None,
) -> Iterator[Trial]:
    """The run of a plan for the block: found by its digest, or started.

    The run ends FINISHED and complete when the block does; FAILED on an error, KILLED on Ctrl-C. A
    run that was not complete is set RUNNING again and counted in the tag ``mergeops.resumed``.

    Args:
        plan: the plan as JSON types, kept as ``plan.json``.
        parent_run_id: run of the search that the trial belongs to.
        kept_in: the folder that the trial is kept in, where it is already.

    Raises:
        TrackingError: the server is gone, or another process here is at work on the same plan.
    """
    with only_one(f"the trial {name!r}", tracking.uri, tracking.experiment_id, plan_digest):
        kept = Pending(
            kept_in or folder_of(Path(recipe.output.dir), plan_digest),
            name,
            plan_digest,
            recipe,
            plan,
            sources,
            base,
            tracking.uri,
            parent_run_id,
        )
        try:
            opened = _open(tracking, recipe, plan_digest, sources, name, parent_run_id)
        except AwayError as error:
            opened = Trial(tracking, "", name, plan_digest, complete=False, away=error)
            kept.reason = str(error)
        opened.pending = kept
        opened.recipe = recipe
        opened.parents = {**({"base": base} if base else {}), **sources}
        try:
            if not opened.complete:
                opened.now_or_later(lambda: trial_inputs.log_inputs(opened, recipe, plan))
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
    run, owner = elect_run(tracking, plan_digest), new_owner()
    if run is None:
        tags = trial_inputs.tags(recipe, plan_digest, sources, name, parent_run_id)
        created = client.create_run(
            tracking.experiment_id, tags={**tags, OWNER: owner}, run_name=run_name(name)
        )
        # Not simply the one that was made: another machine may have been faster.
        run = elect_run(tracking, plan_digest) or created
    if parent_run_id and PARENT_RUN not in run.data.tags:
        # The recipe was run by itself before the search came to it.
        client.set_tag(run.info.run_id, PARENT_RUN, parent_run_id)
    opened = _trial_of(tracking, run, plan_digest)
    if opened.complete:
        return opened
    opened.owner = owner
    if run.data.tags.get(OWNER) != owner:
        count = int(run.data.tags.get("mergeops.resumed", "0")) + 1
        tags_now = [RunTag(OWNER, owner), RunTag("mergeops.resumed", str(count))]
        client.log_batch(run.info.run_id, tags=tags_now)
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
