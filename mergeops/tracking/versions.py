"""Versions of the registered model: one for each plan, which knows where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergeops.errors import TrackingError
from mergeops.redact import redact
from mergeops.report import Standing
from mergeops.scores import Estimate
from mergeops.store import (
    Tracking,
    elect,
    ensure_registered_model,
    folded,
    is_denied,
    is_missing,
    link_version,
    own_tags,
    quoted,
    tag_value,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

ABOUT = "Merges made by mergeops; @champion is the one that passed its gate."
NAME_LIMIT = 4000
"""Databases hold 5000 characters of a description, and the result comes first."""
COPIED = ("plan_digest", "weights_sha256", "method", "parents", "parent_run_ids")
"""Tags of the run that its version has too."""


def register(
    tracking: Tracking,
    name: str,
    run_id: str,
    model_id: str,
    description: str,
    standing: Standing | None = None,
) -> int:
    """Register a READY model as a candidate version of ``name``, or find the version of its plan.

    A reader of MLflow's page sees four tags: the version's status, its score on dev, the difference
    to the best parent and the verdict; what mergeops needs is one hidden tag.

    Args:
        standing: what the scores say, where there are some.

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
    score, tags = pooled_estimate(run.metrics), own_tags(run.tags)
    version = _elected_version(tracking, name, tags["mergeops.plan_digest"], run_id)
    if version is None:
        ensure_registered_model(client, name, ABOUT)
        facts = {
            "mergeops.role": "merge",
            "mergeops.run_id": run_id,
            **{tag: tags[tag] for key in COPIED if (tag := f"mergeops.{key}") in tags},
        }
        with tracking.as_default():
            created = client.create_model_version(
                name,
                source=f"models:/{model_id}",
                run_id=run_id,
                tags={"mergeops.status": "candidate"} | folded(facts),
                description=_described(description, score, standing),
                model_id=model_id,
            )
        version = _elected_version(tracking, name, facts["mergeops.plan_digest"], run_id) or created
    for fact, value in shown(score, standing).items():
        tag = f"mergeops.{fact}"
        if version.tags.get(tag) != value:
            client.set_model_version_tag(name, version.version, tag, value)
    link_version(client, client.get_logged_model(model_id), name, int(version.version))
    return int(version.version)


def pooled_estimate(metrics: Mapping[str, float]) -> Estimate | None:
    """A run's pooled dev score from its metrics, without an interval where none was logged; None
    where it has no score."""
    if (value := metrics.get("pooled")) is None:
        return None
    low, high = metrics.get("pooled_low"), metrics.get("pooled_high")
    return Estimate(value, None if low is None or high is None else (low, high))


def find_registered_model(tracking: Tracking, name: str) -> RegisteredModel:
    """The registered model.

    Raises:
        TrackingError: there is none of that name.
    """
    try:
        return tracking.client.get_registered_model(name)
    except TrackingError as error:
        if is_denied(error):
            # With workspaces MLflow denies what is not there, too.
            raise TrackingError(
                f"there is no registered model {name!r} at {tracking.shown_place} that this "
                "account may read; `mergeops doctor` says which account and workspace are meant"
            ) from error
        if not is_missing(error):
            raise
        raise TrackingError(
            f"there is no registered model {name!r} at {tracking.shown_place}; `mergeops run` and "
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

    versions = client.search_model_versions(f"name = {quoted(name)} and run_id = {quoted(run_id)}")
    # Anybody can make a version of a run, also of another of its models.
    digest = "mergeops.plan_digest"
    own = [version for version in versions if own_tags(version.tags).get(digest) == plan_digest]
    return elect(own, remove, lambda version: int(version.version))


def shown(score: Estimate | None, standing: Standing | None) -> dict[str, str]:
    """What the numbers say, for a reader of a run's or a version's page: score, difference and
    verdict, as far as they are known."""
    facts = {}
    if score is not None:
        facts["score"] = f"{score} on dev"
    if standing is not None:
        parent = standing.parent
        facts["difference"] = tag_value(f"{parent.difference} to {parent.reference}")
        facts["verdict"] = standing.outcome
    return facts


def _described(name: str, score: Estimate | None, standing: Standing | None) -> str:
    """The result first: lists of versions cut what is behind."""
    result = [] if score is None else [f"{score} on dev"]
    result += [] if standing is None else [str(standing)]
    return "; ".join([*result, str(redact(name))[:NAME_LIMIT]])
