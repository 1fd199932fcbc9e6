"""Adopt training runs: their checkpoints become LoggedModels where they lie.

No bytes are copied, no run's status, params or metrics change. Everything may be repeated, also by
several at once: a checkpoint has one LoggedModel, which is its run's output once and has one
version of a registered model.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mergeops.errors import ConfigError, SourceError, TrackingError
from mergeops.settings import TrackingSpec
from mergeops.sources.checkpoints import CHECKPOINT_URI, EXTERNAL
from mergeops.sources.discover import Experiment, Tick, models_by_run, read_experiment
from mergeops.sources.found import Found
from mergeops.sources.groups import Group, group
from mergeops.sources.store import Store, open_store
from mergeops.tracking.lock import only_one

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

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
        what = f"the adoption of {experiment}"
        identity = ("adopt", store.uri, read.experiment_id)
        with only_one(what, *identity, wait=True), store.as_default():
            adopted = _write_all(store, read, usable, register)
    return Adoption(experiment, read.found, tuple(adopted), tuple(group(read.found)))


def _write_all(
    store: Store, read: Experiment, usable: Sequence[Found], register: str | None
) -> list[Adopted]:
    # Another adoption may have been at work until this one had the lock.
    read = dataclasses.replace(read, models=models_by_run(store, read.experiment_id))
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
        model, is_new = _elected(store, _create(store, read.experiment_id, found, tags), found)
    elif any(model.tags.get(key) != value for key, value in tags.items()):
        store.client.set_logged_model_tags(model.model_id, tags)
    if str(model.status) != "READY":
        _write_pointer(store, model)
        model = store.client.finalize_logged_model(model.model_id, "READY")
    _ensure_output(store, read, found, model.model_id)
    return model, is_new


def _elected(store: Store, created: LoggedModel, found: Found) -> tuple[LoggedModel, bool]:
    """The oldest model of the checkpoint: another machine may have been faster."""
    oldest = _present(tuple(store.models_of(created.experiment_id, found.run_id)), found) or created
    if oldest.model_id == created.model_id:
        return created, True
    store.client.delete_logged_model(created.model_id)
    return oldest, False


def _present(owned: Sequence[LoggedModel], found: Found) -> LoggedModel | None:
    for model in owned:
        if found.model_id is not None and model.model_id == found.model_id:
            return model
    ours = [m for m in owned if m.tags.get(CHECKPOINT_URI) == found.checkpoint]
    return min(ours, key=lambda m: (int(m.creation_timestamp), m.model_id)) if ours else None


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
    outputs = store.run(found.run_id).outputs
    if model_id in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
        return
    from mlflow.entities import LoggedModelOutput

    store.client.log_outputs(found.run_id, [LoggedModelOutput(model_id, found.step or 0)])


def _versions(store: Store, name: str) -> dict[str, str]:
    """Source -> NAME/VERSION of what is registered; the registered model is made if need be."""
    from mergeops.tracking.client import error_code

    try:
        store.client.create_registered_model(
            name, description="Checkpoints of training runs, adopted by mergeops as ingredients."
        )
    except TrackingError as error:
        if error_code(error) not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    newest_first = sorted(_all_versions(store, name), key=lambda v: int(v.version), reverse=True)
    return {str(version.source): f"{name}/{version.version}" for version in newest_first}


def _all_versions(store: Store, name: str, source: str | None = None) -> Iterator[ModelVersion]:
    from mergeops.tracking.client import pages
    from mergeops.tracking.keys import quoted

    wanted = f"name = {quoted(name)}"
    if source is not None:
        wanted += f" and source_path = {quoted(source)}"
    for page in pages(store.client.search_model_versions, wanted):
        yield from page


def _ensure_version(
    store: Store, name: str, versions: dict[str, str], found: Found, model: LoggedModel
) -> str:
    source = f"models:/{model.model_id}"
    if source not in versions:
        store.client.create_model_version(
            name,
            source=source,
            run_id=found.run_id,
            tags=_tags(found),
            description=f"{found.run_name} ({found.status}), {found.uri}",
            model_id=model.model_id,
        )
        versions[source] = _elected_version(store, name, source)
    # Also where it was there: whoever made it may have been killed before this.
    _link(store, model, name, int(versions[source].rpartition("/")[2]))
    return versions[source]


def _elected_version(store: Store, name: str, source: str) -> str:
    """The oldest version of a source; versions that another machine made meanwhile go."""
    from mergeops.tracking.client import or_none

    own = _all_versions(store, name, source)
    oldest, *others = sorted(own, key=lambda v: int(v.version))
    for other in others:
        or_none(partial(store.client.delete_model_version, name, other.version))
    return f"{name}/{oldest.version}"


def _link(store: Store, model: LoggedModel, name: str, version: int) -> None:
    # What mlflow.register_model writes too: the model's page shows its versions by this tag.
    raw = model.tags.get(VERSIONS_TAG)
    known = json.loads(raw) if raw else []
    entry = {"name": name, "version": version}
    if entry in known:
        return
    known.append(entry)
    store.client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(known)})
