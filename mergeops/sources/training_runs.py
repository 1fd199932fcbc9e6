"""The MLflow server or database that runs:/ and models:/ are read from; nothing is created."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mergeops.errors import SourceError
from mergeops.recipe import TrackingSpec
from mergeops.redact import redact
from mergeops.sources.remote.directory import Directory, LocalDirectory, RemoteDirectory, moved
from mergeops.sources.schemes import allowed, local_path
from mergeops.store import (
    Tracking,
    connect_to_read,
    missing_package,
    or_none,
    pages,
    quiet,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

SQLITE = "sqlite:///"
MODELS_PER_PAGE = 1000


@dataclass(frozen=True)
class TrainingRuns:
    """A reachable MLflow and where its moved paths are now."""

    tracking: Tracking
    path_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """Tracking URI; may hold credentials, so show ``shown``."""
        return self.tracking.uri

    @property
    def client(self) -> MlflowClient:
        """Its errors are TrackingErrors."""
        return self.tracking.client

    @property
    def shown(self) -> str:
        """Server and workspace, without credentials."""
        return self.tracking.shown_place

    def open(self, uri: str) -> Directory:
        """The directory that a logged path or artifact URI means, after ``path_map``.

        Raises:
            SourceError: MLflow does not know the scheme.
        """
        now = moved(uri, self.path_map)
        path, before = local_path(now), local_path(uri)
        if path is not None and before is not None and before.exists() and not path.exists():
            # What adopt noted is where things are now, and moves no more.
            path = before
        if path is not None:
            return LocalDirectory(path.absolute(), boundary=path.absolute())
        return open_remote(now, self.uri, self.tracking.registry_uri)

    def nearby(self, path: str) -> list[tuple[Path, bool]]:
        """Where a logged path may be on this machine, and whether only the current directory says
        so: a relative one is tried from beside the database, then from the current directory."""
        mapped = local_path(moved(path, self.path_map))
        if mapped is None:
            return []
        if mapped.is_absolute():
            return [(mapped, False)]
        here, paths = Path.cwd() / mapped, []
        if self.uri.startswith(SQLITE):
            beside = Path(self.uri.removeprefix(SQLITE)).parent.absolute() / mapped
            paths.append((beside, False))
        return paths if paths and paths[0][0] == here else [*paths, (here, True)]

    def models_of(self, experiment_id: str, run_id: str | None = None) -> Iterator[LoggedModel]:
        """The LoggedModels of an experiment, or of one run."""
        search = self.client.search_logged_models
        wanted = f"source_run_id = '{run_id}'" if run_id else None
        for page in pages(search, [experiment_id], wanted, max_results=MODELS_PER_PAGE):
            yield from page

    def other_outputs(self, run: Run, known: Iterable[LoggedModel]) -> Iterator[LoggedModel]:
        """Outputs of a run that are not among its own models: made in another experiment, or by
        nobody that they name."""
        outputs = run.outputs.model_outputs if run.outputs else []
        own = {model.model_id for model in known}
        for model_id in sorted({output.model_id for output in outputs or []} - own):
            model = or_none(partial(self.client.get_logged_model, model_id))
            if model is not None:
                yield model

    def run(self, run_id: str) -> Run:
        """A run that is not deleted.

        Raises:
            SourceError: there is none.
        """
        run = or_none(lambda: self.client.get_run(run_id))
        if run is None:
            raise SourceError(f"there is no run {run_id} at {self.shown}")
        if run.info.lifecycle_stage == "deleted":
            raise SourceError(
                f"run {run_id} is deleted in MLflow; restore it with `mlflow runs restore "
                f"--run-id {run_id}`"
            )
        return run


def open_remote(
    uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> RemoteDirectory:
    """A directory in an artifact store.

    Raises:
        SourceError: MLflow does not know the scheme, or the store's client is not installed.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    quiet()
    try:
        repository = get_artifact_repository(uri, tracking_uri, registry_uri)
    except MlflowException as error:
        raise SourceError(
            f"{redact(uri)} has a scheme that is not known; a source is {allowed(stores=True)}"
        ) from error
    except ModuleNotFoundError as error:
        missing, wanted = missing_package(error)
        raise SourceError(
            f"{redact(uri)} needs the package {missing}; pip install {wanted}"
        ) from error
    return RemoteDirectory(repository, uri)


def open_store(spec: TrackingSpec, path_map: Mapping[str, str] | None = None) -> TrainingRuns:
    """Reach the MLflow that holds the training runs.

    Raises:
        TrackingError: it cannot be reached, or the database file does not exist.
    """
    return TrainingRuns(connect_to_read(spec), path_map or {})
