"""What several machines may make at the same moment, and what is there once in the end.

MLflow has no create-if-absent, and its client asks twice where an answer is lost. So a process
that makes a thing looks again: all elect the same one, and the others go.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mergeops.errors import AwayError, TrackingError
from mergeops.store.client import is_denied, is_taken
from mergeops.store.keys import flatten, tag_value

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

VERSIONS_TAG = "mlflow.modelVersions"
TRIES = 3
"""Of a step that another process may do at the same moment."""

Thing = TypeVar("Thing")


def model_age(model: Any) -> tuple[int, str]:
    """What orders LoggedModels, the oldest first."""
    return int(model.creation_timestamp), model.model_id


def elect(
    equals: Iterable[Thing],
    remove: Callable[[Thing], object],
    age: Callable[[Any], Any] = model_age,
) -> Thing | None:
    """The oldest of things that stand for the same, which every machine takes; None of none.

    Args:
        remove: called with each of the others; keeps what is in use.
        age: what orders them, the oldest first; the default orders LoggedModels.
    """
    by_age = sorted(equals, key=age)
    for other in by_age[1:]:
        try:
            remove(other)
        except TrackingError as error:
            # Another account's may stay: every machine takes the oldest all the same.
            if not is_denied(error):
                raise
    return by_age[0] if by_age else None


def unless_raced(step: Callable[[], None], check: Callable[[], object] = lambda: None) -> None:
    """Do a step that may be repeated; where it is refused, again, since another process may have
    written the same at the same moment. Each database refuses that in words of its own.

    Args:
        check: called before a repetition; may raise.
    """
    for _ in range(TRIES - 1):
        try:
            return step()
        except AwayError:
            raise
        except TrackingError:
            check()
    return step()


def log_inputs(
    client: MlflowClient, run_id: str, check: Callable[[], object] = lambda: None, **inputs: Any
) -> None:
    """Log ``models`` or ``datasets`` as a run's inputs; those that are there stay.

    Args:
        check: called before what was refused is tried again; may raise.
    """
    unless_raced(lambda: client.log_inputs(run_id, **inputs), check)


def log_params(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, Any],
    check: Callable[[], object] = lambda: None,
) -> None:
    """Log the parameters that the run does not have yet; one that is there cannot be changed.

    Args:
        params: JSON types, see ``flatten``.
        check: called before what was refused is tried again; may raise.
    """
    from mlflow.entities import Param

    flat = flatten(params)

    def step() -> None:
        logged = client.get_run(run_id).data.params
        missing = [Param(name, value) for name, value in flat.items() if name not in logged]
        for start in range(0, len(missing), 100):
            client.log_batch(run_id, params=missing[start : start + 100])

    unless_raced(step, check)


def ensure_registered_model(client: MlflowClient, name: str, description: str) -> None:
    """Make a registered model, where there is none of that name."""
    try:
        client.create_registered_model(name, description=description)
    except TrackingError as error:
        if not is_taken(error):
            raise


def finish_external_model(client: MlflowClient, model: LoggedModel) -> LoggedModel:
    """Make a LoggedModel READY whose files stay where they lie.

    ``mlflow.create_external_model`` does this too, but it cannot finish what a killed process has
    begun, and it writes to the process's default server.
    """
    from mlflow.models.utils import get_external_mlflow_model_spec

    if str(model.status) == "READY":
        return model
    # MLflow registers and shows a model only with an MLmodel file; this one says "elsewhere".
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        get_external_mlflow_model_spec(model).save(f"{folder}/MLmodel")
        client.log_model_artifacts(model.model_id, folder)
    return client.finalize_logged_model(model.model_id, "READY")


def link_version(client: MlflowClient, model: LoggedModel, name: str, version: int) -> None:
    """Show a version on its model's page, by the tag that ``mlflow.register_model`` writes too."""
    raw = model.tags.get(VERSIONS_TAG)
    linked = json.loads(raw) if raw else []
    # MLflow itself writes the number now as a number, now as a text.
    if not any(v["name"] == name and int(v["version"]) == version for v in linked):
        linked.append({"name": name, "version": version})
        client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: tag_value(linked)})
