"""Which run is a trial's, and which process writes to it, where several machines start one plan.

MLflow has no create-if-absent for runs, and answers that get lost on the way make its client ask
twice. So whoever made a run or a model looks again, all take the same one, and the others go. A tag
names the process that writes now; one that finds another's name there stops.
"""

from __future__ import annotations

import os
import socket
import uuid
from typing import TYPE_CHECKING

from mergeops.errors import TrackingError
from mergeops.tracking.client import or_none
from mergeops.tracking.scores import search_runs, with_tags

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

    from mergeops.tracking.connection import Tracking

OWNER = "mergeops.owner"


def new_owner() -> str:
    """This process's name for one trial, e.g. ``host:1234:5f0c...``."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"


def check_owner(tracking: Tracking, run_id: str, name: str, owner: str) -> None:
    """Refuse to write to a run that is another process's by now.

    Raises:
        TrackingError: another process took the trial over, or somebody deleted its run.
    """
    run = tracking.client.get_run(run_id)
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(
            f"run {run_id} of the trial {name!r} was deleted, in MLflow or by another process that "
            "logs the same plan; finished work is kept, so run the same command again"
        )
    there = run.data.tags.get(OWNER, owner)
    if there != owner:
        host, process, *_ = [*there.split(":"), "?"]
        raise TrackingError(
            f"the trial {name!r} was taken over by process {process} on {host}; this one stops, "
            "finished work is kept"
        )


def elect_run(tracking: Tracking, plan_digest: str) -> Run | None:
    """The one run of a plan: the complete one, else the oldest; unfinished others are deleted."""
    found = search_runs(tracking, with_tags(plan_digest=plan_digest, role="merge"))
    if not found:
        return None
    chosen = min(found, key=lambda run: (not _is_complete(run), run.info.start_time, _id(run)))
    for run in found:
        if run is not chosen and not _is_complete(run):
            for model in merge_models(tracking, _id(run), plan_digest):
                delete_model(tracking, model)
            tracking.client.delete_run(_id(run))
    return chosen


def elect_model(tracking: Tracking, run_id: str, plan_digest: str) -> LoggedModel | None:
    """The one model of a trial: the oldest by the server's clock; others are deleted."""
    models = merge_models(tracking, run_id, plan_digest)
    for model in models[1:]:
        delete_model(tracking, model)
    return models[0] if models else None


def merge_models(tracking: Tracking, run_id: str, plan_digest: str) -> list[LoggedModel]:
    """Every LoggedModel of a trial's run, oldest first."""
    wanted = with_tags(plan_digest=plan_digest, role="merge")
    found = tracking.client.search_logged_models([tracking.experiment_id], wanted)
    own = [model for model in found if model.source_run_id == run_id]
    return sorted(own, key=lambda model: (model.creation_timestamp, model.model_id))


def delete_model(tracking: Tracking, model: LoggedModel) -> None:
    """Delete a LoggedModel, where another process did not do so already."""
    or_none(lambda: tracking.client.delete_logged_model(model.model_id))


def _is_complete(run: Run) -> bool:
    return bool(run.data.tags.get("mergeops.complete") == "true")


def _id(run: Run) -> str:
    return str(run.info.run_id)
