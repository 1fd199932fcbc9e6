"""Versions of the registered model: one for each plan, tagged with where it came from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mergeops.errors import TrackingError
from mergeops.evaluate.intervals import Estimate
from mergeops.secrets import redact
from mergeops.tracking.client import error_code, is_missing
from mergeops.tracking.keys import quoted, tag_value
from mergeops.tracking.scores import pooled_estimate, with_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

    from mergeops.tracking.connection import Tracking

DESCRIPTION_LIMIT = 4900
"""Databases hold 5000 characters, and the score comes behind."""
VERSIONS_TAG = "mlflow.modelVersions"


def register(
    tracking: Tracking,
    name: str,
    run_id: str,
    model_id: str,
    *,
    role: str,
    status: str,
    description: str,
) -> int:
    """Register a READY model as a version of ``name``, or find the version of its plan.

    Returns:
        The version's number.

    Raises:
        TrackingError: the model is not READY (MLflow itself would take it), or MLflow refuses.
    """
    import mlflow

    client = tracking.client
    model = client.get_logged_model(model_id)
    if str(model.status) != "READY":
        raise TrackingError(
            f"model {model_id} is {model.status}, not READY; only a complete upload is registered"
        )
    run = client.get_run(run_id).data
    tags = run.tags
    digest = tags["mergeops.plan_digest"]
    found = _versions_of(tracking, name, digest, run_id)
    if not found:
        _ensure_registered_model(tracking, name)
        # MLflow looks the model up in the process's default store, whatever the client's is.
        mlflow.set_tracking_uri(tracking.uri)
        copied = ("plan_digest", "weights_sha256", "method", "parents", "parent_run_ids")
        client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags={
                "mergeops.role": role,
                "mergeops.status": status,
                "mergeops.run_id": run_id,
                **{
                    f"mergeops.{key}": tags[f"mergeops.{key}"]
                    for key in copied
                    if f"mergeops.{key}" in tags
                },
            },
            description=_with_score(description, pooled_estimate(run.metrics)),
            model_id=model_id,
        )
        found = _versions_of(tracking, name, digest, run_id)
    # The lowest number, so that two machines that raced agree, or a client that asked twice.
    version = min(int(v.version) for v in found)
    for other in found:
        if int(other.version) != version and not _is_used(client, other):
            client.delete_model_version(name, other.version)
    _link(tracking, model_id, name, version)
    return version


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
        there = sorted(
            int(v.version) for v in tracking.client.search_model_versions(f"name = {quoted(name)}")
        )
        listed = ", ".join(map(str, there)) or "none"
        raise TrackingError(f"{name} has no version {version}; its versions: {listed}") from error


def _versions_of(tracking: Tracking, name: str, digest: str, run_id: str) -> list[ModelVersion]:
    wanted = f"name = {quoted(name)} and {with_tags(plan_digest=digest)}"
    found = tracking.client.search_model_versions(wanted)
    # A version of a run that was deleted since is not this one.
    return [version for version in found if version.tags.get("mergeops.run_id") == run_id]


def _is_used(client: MlflowClient, version: ModelVersion) -> bool:
    aliases = client.get_registered_model(version.name).aliases
    return str(version.version) in {str(number) for number in aliases.values()}


def _with_score(description: str, score: Estimate | None) -> str:
    description = str(redact(description))[:DESCRIPTION_LIMIT]
    return description if score is None else f"{description}; score on dev {score}"


def _ensure_registered_model(tracking: Tracking, name: str) -> None:
    try:
        tracking.client.create_registered_model(
            name, description="Merges made by mergeops; @champion is the one that passed its gate."
        )
    except TrackingError as error:
        if error_code(error) not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise


def _link(tracking: Tracking, model_id: str, name: str, version: int) -> None:
    # What mlflow.register_model writes too: the model's page shows its versions by this tag.
    client = tracking.client
    raw = client.get_logged_model(model_id).tags.get(VERSIONS_TAG)
    known = json.loads(raw) if raw else []
    if not any(v["name"] == name and int(v["version"]) == version for v in known):
        known.append({"name": name, "version": version})
        client.set_logged_model_tags(model_id, {VERSIONS_TAG: tag_value(known)})
