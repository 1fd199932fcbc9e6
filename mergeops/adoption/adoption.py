"""Adopt training runs: their checkpoints become LoggedModels where they lie.

No bytes are copied, no run's status, params or metrics change. Everything may be repeated, also by
several at once: a checkpoint has one LoggedModel, which is its run's output once and has one
version of a registered model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mergeops.adoption.discover import Experiment, Tick, models_by_run, read_experiment
from mergeops.adoption.found import FoundRun
from mergeops.adoption.groups import Group, group
from mergeops.errors import ConfigError, SourceError, TrackingError
from mergeops.recipe import TrackingSpec
from mergeops.sources import CHECKPOINT_URI, EXTERNAL, TrainingRuns, open_store
from mergeops.store import (
    elect,
    ensure_registered_model,
    finish_external_model,
    keep_seen,
    link_version,
    model_name,
    only_one,
    or_none,
    pages,
    quoted,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

MODEL_TYPE = "checkpoint"
ABOUT = "Checkpoints of training runs, adopted by mergeops as ingredients."


@dataclass(frozen=True)
class Adopted:
    """A usable run and the model that stands for its checkpoint."""

    found: FoundRun
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
    found: tuple[FoundRun, ...]
    """Every run, newest first."""
    adopted: tuple[Adopted, ...]
    """The usable ones, newest first."""
    groups: tuple[Group, ...]
    """The usable ones by what can be merged, largest first."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Pages in MLflow: ``experiment``, ``model`` where one was registered, and each run's by its
    id; empty where no server serves any."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: the experiment, ``rows`` as ``runs``, and the links."""
        return {"experiment": self.experiment, "runs": self.rows(), "links": dict(self.links)}

    def rows(self) -> list[dict[str, Any]]:
        """One row a run as JSON types: ``FoundRun.row`` with ``adopted_model_id``, ``registered``,
        ``is_new``, ``group`` (0 is the largest), ``not_with_the_largest`` (the reason) and ``page``
        (of the run in MLflow, where a server serves it)."""
        adopted = {one.found.run_id: one for one in self.adopted}
        groups = {run.run_id: (i, g.reason) for i, g in enumerate(self.groups) for run in g.members}
        rows = []
        for run in self.found:
            model = adopted.get(run.run_id) or Adopted(run)
            number, reason = groups.get(run.run_id, (None, None))
            rows.append(
                run.row()
                | {
                    "adopted_model_id": model.model_id,
                    "registered": model.registered,
                    "is_new": model.is_new,
                    "group": number,
                    "not_with_the_largest": reason,
                    "page": self.links.get(run.run_id),
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
    usable = [run for run in read.found if run.problem is None]
    if not usable:
        raise SourceError(_nothing_usable(read))
    if dry_run:
        adopted = [Adopted(run) for run in usable]
    else:
        what = f"the adoption of {experiment}"
        identity = ("adopt", store.tracking.place, read.experiment_id)
        with only_one(what, *identity, wait=True), store.tracking.as_default():
            adopted = _write_all(store, read, usable, register)
    keep_seen(store.uri, {str(run.uri): f"{run.run_name} ({run.status})" for run in usable})
    here = dataclasses.replace(store.tracking, experiment_id=read.experiment_id)
    pages = {
        "experiment": here.experiment_page(),
        "model": here.model_page(register) if register and not dry_run else None,
        **{run.run_id: here.run_page(run.run_id) for run in read.found},
    }
    links = {what: page for what, page in pages.items() if page is not None}
    return Adoption(experiment, read.found, tuple(adopted), tuple(group(read.found)), links)


def _write_all(
    store: TrainingRuns, read: Experiment, usable: Sequence[FoundRun], register: str | None
) -> list[Adopted]:
    # Another adoption may have been at work until this one had the lock.
    read = dataclasses.replace(read, models=models_by_run(store, read.experiment_id))
    versions = _versions(store, register) if register else {}
    adopted = []
    for run in usable:
        model, is_new = _ensure_model(store, read, run)
        registered = _ensure_version(store, register, versions, run, model) if register else None
        adopted.append(Adopted(run, model.model_id, registered, is_new))
    return adopted


def _nothing_usable(read: Experiment) -> str:
    problems = [f"{run.run_name}: {run.problem}" for run in read.found]
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return (
        f"experiment {read.name!r} has {len(problems)} run(s), none with a usable checkpoint: "
        + "; ".join(problems[:5])
        + more
    )


def _ensure_model(store: TrainingRuns, read: Experiment, run: FoundRun) -> tuple[LoggedModel, bool]:
    owned = read.models.get(run.run_id, ())
    tags = _tags(run)
    model = _present(owned, run)
    is_new = model is None
    if model is None:
        model, is_new = _elected(store, _create(store, read.experiment_id, run, tags), run)
    elif any(model.tags.get(key) != value for key, value in tags.items()):
        store.client.set_logged_model_tags(model.model_id, tags)
    model = finish_external_model(store.client, model)
    _ensure_output(store, read, run, model.model_id)
    return model, is_new


def _elected(
    store: TrainingRuns, created: LoggedModel, found: FoundRun
) -> tuple[LoggedModel, bool]:
    """The oldest model of the checkpoint: another machine may have been faster."""
    oldest = _present(tuple(store.models_of(created.experiment_id, found.run_id)), found) or created
    if oldest.model_id == created.model_id:
        return created, True
    store.client.delete_logged_model(created.model_id)
    return oldest, False


def _present(owned: Sequence[LoggedModel], found: FoundRun) -> LoggedModel | None:
    for model in owned:
        if found.model_id is not None and model.model_id == found.model_id:
            return model
    ours = [m for m in owned if m.tags.get(CHECKPOINT_URI) == found.checkpoint]
    return elect(ours, lambda other: None)


def _tags(run: FoundRun) -> dict[str, str]:
    tags = {
        "mergeops.role": "source",
        "mergeops.status": "ingredient",
        "mergeops.kind": str(run.kind),
        "mergeops.source_uri": str(run.uri),
    }
    if run.model_id is None:
        tags[CHECKPOINT_URI] = str(run.checkpoint)
    if run.base:
        tags["mergeops.base"] = run.base
    if run.step is not None:
        tags["mergeops.step"] = str(run.step)
    if run.not_finite:
        # As a metric of the model, MLflow would show it as 0.0.
        tags["mergeops.not_finite"] = ", ".join(run.not_finite)
    return tags


def _create(
    store: TrainingRuns, experiment_id: str, run: FoundRun, tags: Mapping[str, str]
) -> LoggedModel:
    step = f" step {run.step}" if run.step is not None else ""
    return store.client.create_logged_model(
        experiment_id,
        name=model_name(f"{run.run_name}{step}"),
        source_run_id=run.run_id,
        tags={**tags, EXTERNAL: "true"},
        params={
            "uri": str(run.uri),
            "checkpoint": str(run.checkpoint),
            "kind": str(run.kind),
            "base": str(run.base),
            "architectures": ", ".join(run.architectures),
        },
        model_type=MODEL_TYPE,
    )


def _ensure_output(store: TrainingRuns, read: Experiment, run: FoundRun, model_id: str) -> None:
    # MLflow refuses the same output twice.
    if model_id in read.outputs.get(run.run_id, frozenset()):
        return
    outputs = store.run(run.run_id).outputs
    if model_id in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
        return
    from mlflow.entities import LoggedModelOutput

    store.client.log_outputs(run.run_id, [LoggedModelOutput(model_id, run.step or 0)])


def _versions(store: TrainingRuns, name: str) -> dict[str, str]:
    """Source -> NAME/VERSION of what is registered; the registered model is made if need be."""
    ensure_registered_model(store.client, name, ABOUT)
    newest_first = sorted(_all_versions(store, name), key=lambda v: int(v.version), reverse=True)
    return {str(version.source): f"{name}/{version.version}" for version in newest_first}


def _all_versions(
    store: TrainingRuns, name: str, source: str | None = None
) -> Iterator[ModelVersion]:
    wanted = f"name = {quoted(name)}"
    if source is not None:
        wanted += f" and source_path = {quoted(source)}"
    for page in pages(store.client.search_model_versions, wanted):
        yield from page


def _ensure_version(
    store: TrainingRuns, name: str, versions: dict[str, str], run: FoundRun, model: LoggedModel
) -> str:
    source = f"models:/{model.model_id}"
    if source not in versions:
        store.client.create_model_version(
            name,
            source=source,
            run_id=run.run_id,
            tags=_tags(run),
            description=f"{run.run_name} ({run.status}), {run.uri}",
            model_id=model.model_id,
        )
        versions[source] = _elected_version(store, name, source)
    # Also where it was there: whoever made it may have been killed before this.
    link_version(store.client, model, name, int(versions[source].rpartition("/")[2]))
    return versions[source]


def _elected_version(store: TrainingRuns, name: str, source: str) -> str:
    """The oldest version of a source; versions that another machine made meanwhile go."""

    def remove(version: ModelVersion) -> None:
        or_none(partial(store.client.delete_model_version, name, version.version))

    own = _all_versions(store, name, source)
    oldest = elect(own, remove, lambda version: int(version.version))
    if oldest is None:
        raise TrackingError(f"the version of {source} in {name} was deleted as it was made")
    return f"{name}/{oldest.version}"
