"""Versions of the registered model: one for each plan, tagged with where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergeops.errors import TrackingError
from mergeops.redact import redact
from mergeops.scores import Estimate
from mergeops.store import (
    Tracking,
    elect,
    ensure_registered_model,
    is_missing,
    link_version,
    quoted,
    with_tags,
)
from mergeops.tracking.score_log import pooled_estimate

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

ABOUT = "Merges made by mergeops; @champion is the one that passed its gate."
DESCRIPTION_LIMIT = 4900
"""Databases hold 5000 characters, and the score comes behind."""
COPIED = ("plan_digest", "weights_sha256", "method", "parents", "parent_run_ids")
"""Tags of the run that its version has too."""


def register(tracking: Tracking, name: str, run_id: str, model_id: str, description: str) -> int:
    """Register a READY model as a candidate version of ``name``, or find the version of its plan.

    Returns:
        The version's number.

    Raises:
        TrackingError: the model is not READY (MLflow itself would take it), or MLflow refuses.
    """
    client = tracking.client
    model = client.get_logged_model(model_id)
    if str(model.status) != "READY":
        raise TrackingError(
            f"model {model_id} is {model.status}, not READY; only a complete upload is registered"
        )
    run = client.get_run(run_id).data
    version = _elected_version(tracking, name, run.tags["mergeops.plan_digest"], run_id)
    if version is None:
        ensure_registered_model(client, name, ABOUT)
        tags = {
            "mergeops.role": "merge",
            "mergeops.status": "candidate",
            "mergeops.run_id": run_id,
            **{tag: run.tags[tag] for key in COPIED if (tag := f"mergeops.{key}") in run.tags},
        }
        with tracking.as_default():
            created = client.create_model_version(
                name,
                source=f"models:/{model_id}",
                run_id=run_id,
                tags=tags,
                description=_with_score(description, pooled_estimate(run.metrics)),
                model_id=model_id,
            )
        version = _elected_version(tracking, name, tags["mergeops.plan_digest"], run_id) or created
    link_version(client, client.get_logged_model(model_id), name, int(version.version))
    return int(version.version)


def find_registered_model(tracking: Tracking, name: str) -> RegisteredModel:
    """The registered model.

    Raises:
        TrackingError: there is none of that name.
    """
    try:
        return tracking.client.get_registered_model(name)
    except TrackingError as error:
        if not is_missing(error):
            raise
        raise TrackingError(
            f"there is no registered model {name!r} at {tracking.shown_uri}; `mergeops run` and "
            "`mergeops search` register their merges"
        ) from error


def find_version(tracking: Tracking, name: str, version: int) -> ModelVersion:
    """The version of a registered model.

    Raises:
        TrackingError: there is no such model or version.
    """
    try:
        return tracking.client.get_model_version(name, str(version))
    except TrackingError as error:
        if not is_missing(error):
            raise
        find_registered_model(tracking, name)
        versions = tracking.client.search_model_versions(f"name = {quoted(name)}")
        listed = ", ".join(map(str, sorted(int(v.version) for v in versions))) or "none"
        raise TrackingError(f"{name} has no version {version}; its versions: {listed}") from error


def _elected_version(
    tracking: Tracking, name: str, plan_digest: str, run_id: str
) -> ModelVersion | None:
    """The version of a run: of several that raced the lowest number; others go, unless used."""
    client = tracking.client

    def remove(version: ModelVersion) -> None:
        aliases = client.get_registered_model(name).aliases
        if str(version.version) not in {str(number) for number in aliases.values()}:
            client.delete_model_version(name, version.version)

    wanted = f"name = {quoted(name)} and {with_tags(plan_digest=plan_digest)}"
    versions = client.search_model_versions(wanted)
    # A version of a run that was deleted since is not this one.
    own = [version for version in versions if version.tags.get("mergeops.run_id") == run_id]
    return elect(own, remove, lambda version: int(version.version))


def _with_score(description: str, score: Estimate | None) -> str:
    description = str(redact(description))[:DESCRIPTION_LIMIT]
    return description if score is None else f"{description}; score on dev {score}"
