"""Which run is a trial's, and which process writes to it, where several machines start one plan.

A process that made a run or a model looks again, see ``store.elect``: all take the same one, and
the others go. A tag names the process that writes now; one that finds another's name there stops.
"""

from __future__ import annotations

import os
import socket
import uuid
from typing import TYPE_CHECKING

from mergeops.store import Tracking, elect, or_none, own_tags, run_filters, with_tags

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

OWNER = "owner"
"""Among what mergeops keeps of a run: who writes to it."""


def new_owner() -> str:
    """This process's name for one trial, e.g. ``host:1234:5f0c...``."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"


def elect_run(tracking: Tracking, plan_digest: str) -> Run | None:
    """The one run of a plan: the complete one, else the oldest; unfinished others are deleted."""

    def remove(run: Run) -> None:
        if not _is_complete(run):
            for model in _merge_models(tracking, run.info.run_id, plan_digest):
                delete_model(tracking, model)
            tracking.client.delete_run(run.info.run_id)

    runs = tracking.search_runs(*run_filters("merge", plan_digest=plan_digest))
    return elect(runs, remove, lambda run: (not _is_complete(run), *run_age(run)))


def elect_model(tracking: Tracking, run_id: str, plan_digest: str) -> LoggedModel | None:
    """The one model of a trial: the oldest by the server's clock; others are deleted."""
    models = _merge_models(tracking, run_id, plan_digest)
    return elect(models, lambda model: delete_model(tracking, model))


def run_age(run: Run) -> tuple[int, str]:
    """What orders runs, the oldest first."""
    return run.info.start_time, run.info.run_id


def delete_model(tracking: Tracking, model: LoggedModel) -> None:
    """Delete a LoggedModel, where another process did not do so already."""
    or_none(lambda: tracking.client.delete_logged_model(model.model_id))


def _merge_models(tracking: Tracking, run_id: str, plan_digest: str) -> list[LoggedModel]:
    wanted = with_tags(plan_digest=plan_digest, role="merge")
    models = tracking.client.search_logged_models([tracking.experiment_id], wanted)
    return [model for model in models if model.source_run_id == run_id]


def _is_complete(run: Run) -> bool:
    return own_tags(run.data.tags).get("mergeops.complete") == "true"
