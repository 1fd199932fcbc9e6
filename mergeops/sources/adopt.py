"""Adopt training runs: their checkpoints become LoggedModels where they lie.

No bytes are copied and no run's status changes. Everything may be repeated: a checkpoint has one
LoggedModel, a LoggedModel is its run's output once and has one version of a registered model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.errors import ConfigError, SourceError, TrackingError
from mergeops.settings import TrackingSpec
from mergeops.sources.checkpoints import CHECKPOINT_URI, EXTERNAL
from mergeops.sources.discover import Experiment, Tick, read_experiment
from mergeops.sources.found import Found
from mergeops.sources.groups import Group, group
from mergeops.sources.store import Store, open_store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

MODEL_TYPE = "checkpoint"
VERSIONS_TAG = "mlflow.modelVersions"


@dataclass(frozen=True)
class Adopted:
    """A usable run and the model that stands for its checkpoint."""

    found: Found
    model_id: str | None = None
    """LoggedModel; None in a dry run."""
    registered: str | None = None
    """NAME/VERSION, where it was registered."""
    is_new: bool = False
    """Whether this call made the LoggedModel; else it was there already."""


@dataclass(frozen=True)
class Adoption:
    """What became of every run of an experiment."""

    experiment: str
    found: tuple[Found, ...]
    """Every run, newest first."""
    adopted: tuple[Adopted, ...]
    """The usable ones, newest first."""
    groups: tuple[Group, ...]
    """The usable ones by what can be merged, largest first."""

    def rows(self) -> list[dict[str, Any]]:
        """One row a run as JSON types: ``Found.row`` with ``adopted_model_id``, ``registered``,
        ``is_new``, ``group`` (0 is the largest) and ``not_with_the_largest`` (the reason)."""
        by_run = {adopted.found.run_id: adopted for adopted in self.adopted}
        places = {f.run_id: (i, g.reason) for i, g in enumerate(self.groups) for f in g.members}
        rows = []
        for found in self.found:
            adopted = by_run.get(found.run_id)
            number, reason = places.get(found.run_id, (None, None))
            rows.append(
                found.row()
                | {
                    "adopted_model_id": adopted.model_id if adopted else None,
                    "registered": adopted.registered if adopted else None,
                    "is_new": bool(adopted and adopted.is_new),
                    "group": number,
                    "not_with_the_largest": reason,
                }
            )
        return rows


def adopt(
    experiment: str,
    *,
    filter_string: str | None = None,
    path_map: Mapping[str, str] | None = None,
    tracking_uri: str | None = None,
    register: str | None = None,
    dry_run: bool = False,
    progress: Tick | None = None,
) -> Adoption:
    """Find the checkpoints of an experiment's runs and make each a LoggedModel of its run.

    Args:
        experiment: its name.
        filter_string: an MLflow filter over runs.
        path_map: moved storage: prefix of a logged path -> where it is now.
        tracking_uri: default MLFLOW_TRACKING_URI.
        register: also make each a version of this registered model.
        dry_run: write nothing to MLflow.
        progress: called with (runs done, runs listed so far).

    Raises:
        SourceError: no such experiment, no runs, or no run that left a usable checkpoint.
        TrackingError: MLflow cannot be reached, or refuses.
    """
    if register is not None and (not register or set(register) & set("/:")):
        raise ConfigError(f"--register is {register!r}; MLflow allows any name without '/' and ':'")
    store = open_store(TrackingSpec(uri=tracking_uri), path_map)
    read = read_experiment(store, experiment, filter_string, progress)
    usable = [found for found in read.found if found.problem is None]
    if not usable:
        raise SourceError(_nothing_usable(read))
    if dry_run:
        adopted = [Adopted(found) for found in usable]
    else:
        with store.as_default():
            adopted = _write_all(store, read, usable, register)
    return Adoption(experiment, read.found, tuple(adopted), tuple(group(read.found)))


def _write_all(
    store: Store, read: Experiment, usable: Sequence[Found], register: str | None
) -> list[Adopted]:
    versions = _versions(store, register) if register else {}
    adopted = []
    for found in usable:
        model, is_new = _ensure_model(store, read, found)
        registered = _ensure_version(store, register, versions, found, model) if register else None
        adopted.append(Adopted(found, model.model_id, registered, is_new))
    return adopted


def _nothing_usable(read: Experiment) -> str:
    problems = [f"{found.run_name}: {found.problem}" for found in read.found]
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return (
        f"experiment {read.name!r} has {len(problems)} run(s), none with a usable checkpoint: "
        + "; ".join(problems[:5])
        + more
    )


def _ensure_model(store: Store, read: Experiment, found: Found) -> tuple[LoggedModel, bool]:
    owned = read.models.get(found.run_id, ())
    tags = _tags(found)
    model = _present(owned, found)
    is_new = model is None
    if model is None:
        model = _create(store, read.experiment_id, found, tags)
    elif any(model.tags.get(key) != value for key, value in tags.items()):
        store.client.set_logged_model_tags(model.model_id, tags)
    if str(model.status) != "READY":
        _write_pointer(store, model)
        model = store.client.finalize_logged_model(model.model_id, "READY")
    _ensure_output(store, read, found, model.model_id)
    return model, is_new


def _present(owned: Sequence[LoggedModel], found: Found) -> LoggedModel | None:
    for model in owned:
        if found.model_id is not None and model.model_id == found.model_id:
            return model
    ours = [m for m in owned if m.tags.get(CHECKPOINT_URI) == found.checkpoint]
    return min(ours, key=lambda m: int(m.creation_timestamp)) if ours else None


def _tags(found: Found) -> dict[str, str]:
    tags = {
        "mergeops.role": "source",
        "mergeops.status": "ingredient",
        "mergeops.kind": str(found.kind),
        "mergeops.source_uri": str(found.uri),
    }
    if found.model_id is None:
        tags[CHECKPOINT_URI] = str(found.checkpoint)
    if found.base:
        tags["mergeops.base"] = found.base
    if found.step is not None:
        tags["mergeops.step"] = str(found.step)
    return tags


def _create(store: Store, experiment_id: str, found: Found, tags: Mapping[str, str]) -> LoggedModel:
    from mergeops.tracking.keys import model_name

    step = f" step {found.step}" if found.step is not None else ""
    return store.client.create_logged_model(
        experiment_id,
        name=model_name(f"{found.run_name}{step}"),
        source_run_id=found.run_id,
        tags={**tags, EXTERNAL: "true"},
        params={
            "uri": str(found.uri),
            "checkpoint": str(found.checkpoint),
            "kind": str(found.kind),
            "base": str(found.base),
            "architectures": ", ".join(found.architectures),
        },
        model_type=MODEL_TYPE,
    )


def _write_pointer(store: Store, model: LoggedModel) -> None:
    # MLflow registers and shows a model only with an MLmodel file; this one says "elsewhere".
    from mlflow.models.utils import get_external_mlflow_model_spec

    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        get_external_mlflow_model_spec(model).save(f"{folder}/MLmodel")
        store.client.log_model_artifacts(model.model_id, folder)


def _ensure_output(store: Store, read: Experiment, found: Found, model_id: str) -> None:
    # MLflow refuses the same output twice.
    if model_id in read.outputs.get(found.run_id, frozenset()):
        return
    from mlflow.entities import LoggedModelOutput

    store.client.log_outputs(found.run_id, [LoggedModelOutput(model_id, found.step or 0)])


def _versions(store: Store, name: str) -> dict[str, str]:
    """Source -> NAME/VERSION of what is registered; the registered model is made if need be."""
    from mergeops.tracking.client import error_code
    from mergeops.tracking.keys import quoted

    try:
        store.client.create_registered_model(
            name, description="Checkpoints of training runs, adopted by mergeops as ingredients."
        )
    except TrackingError as error:
        if error_code(error) not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    found: dict[str, str] = {}
    token = None
    while True:
        page: Any = store.client.search_model_versions(f"name = {quoted(name)}", page_token=token)
        for version in sorted(page, key=lambda v: int(v.version), reverse=True):
            found[str(version.source)] = f"{name}/{version.version}"
        token = page.token
        if not token:
            return found


def _ensure_version(
    store: Store, name: str, versions: dict[str, str], found: Found, model: LoggedModel
) -> str:
    source = f"models:/{model.model_id}"
    if source not in versions:
        version = store.client.create_model_version(
            name,
            source=source,
            run_id=found.run_id,
            tags=_tags(found),
            description=f"{found.run_name} ({found.status}), {found.uri}",
            model_id=model.model_id,
        )
        versions[source] = f"{name}/{version.version}"
        _link(store, model, name, int(version.version))
    return versions[source]


def _link(store: Store, model: LoggedModel, name: str, version: int) -> None:
    # What mlflow.register_model writes too: the model's page shows its versions by this tag.
    raw = model.tags.get(VERSIONS_TAG)
    known = json.loads(raw) if raw else []
    known.append({"name": name, "version": version})
    store.client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(known)})
