"""The MLflow server or database that runs:/ and models:/ are read from; nothing is created."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mergeops.errors import SourceError, TrackingError
from mergeops.settings import TrackingSpec
from mergeops.sources.path_map import moved
from mergeops.sources.place import LocalPlace, Place, RemotePlace, local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

SQLITE = "sqlite:///"
MODELS_PER_PAGE = 1000


@dataclass(frozen=True)
class Store:
    """A reachable MLflow and where its moved paths are now."""

    uri: str
    """Tracking URI; may hold credentials, so show ``shown``."""
    registry_uri: str | None
    client: MlflowClient
    """Its errors are TrackingErrors."""
    path_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The tracking URI without credentials."""
        from mergeops.secrets import redact

        return str(redact(self.uri))

    def open(self, uri: str) -> Place:
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
            return LocalPlace(path.absolute(), boundary=path.absolute())
        return open_remote(now, self.uri, self.registry_uri)

    @contextmanager
    def as_default(self) -> Iterator[None]:
        """Make this MLflow the process's own for the block."""
        # Creating a model version in a database looks its LoggedModel up in the default store,
        # whatever store the client was made for.
        import mlflow

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)

    def nearby(self, path: str) -> list[Path]:
        """Where a logged path may be on this machine: a relative one is tried from the current
        directory, then from beside the database."""
        mapped = local_path(moved(path, self.path_map))
        if mapped is None:
            return []
        if mapped.is_absolute():
            return [mapped]
        places = [Path.cwd() / mapped]
        if self.uri.startswith(SQLITE):
            places.append(Path(self.uri.removeprefix(SQLITE)).parent / mapped)
        return list(dict.fromkeys(places))

    def models_of(self, experiment_id: str, run_id: str | None = None) -> Iterator[LoggedModel]:
        """The LoggedModels of an experiment, or of one run."""
        from mergeops.tracking.client import pages

        search = self.client.search_logged_models
        wanted = f"source_run_id = '{run_id}'" if run_id else None
        for page in pages(search, [experiment_id], wanted, max_results=MODELS_PER_PAGE):
            yield from page

    def run(self, run_id: str) -> Run:
        """A run that is not deleted.

        Raises:
            SourceError: there is none.
        """
        from mergeops.tracking.client import is_missing

        try:
            run = self.client.get_run(run_id)
        except TrackingError as error:
            if not is_missing(error):
                raise
            raise SourceError(f"there is no run {run_id} at {self.shown}") from error
        if run.info.lifecycle_stage == "deleted":
            raise SourceError(
                f"run {run_id} is deleted in MLflow; restore it with `mlflow runs restore "
                f"--run-id {run_id}`"
            )
        return run


def open_remote(
    uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> RemotePlace:
    """A directory in an artifact store.

    Raises:
        SourceError: MLflow does not know the scheme, or the store's client is not installed.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from mergeops.secrets import redact
    from mergeops.tracking import client as quiet_client

    quiet_client.quiet()
    try:
        repository = get_artifact_repository(uri, tracking_uri, registry_uri)
    except MlflowException as error:
        raise SourceError(
            f"{redact(uri)} has a scheme that is not known; a source is a directory, runs:/ID, "
            "models:/NAME/VERSION, models:/NAME@ALIAS, hf://ORG/NAME, or a directory in a store "
            "that MLflow reads, such as s3://BUCKET/PATH"
        ) from error
    except ModuleNotFoundError as error:
        missing, wanted = quiet_client.missing_package(error)
        raise SourceError(
            f"{redact(uri)} needs the package {missing}; pip install {wanted}"
        ) from error
    return RemotePlace(repository, uri)


def open_store(spec: TrackingSpec, path_map: Mapping[str, str] | None = None) -> Store:
    """Reach the MLflow that holds the training runs.

    Raises:
        TrackingError: it cannot be reached, or the database file does not exist.
    """
    from mergeops.tracking import client as quiet_client
    from mergeops.tracking.connection import chosen_uri

    uri = chosen_uri(spec)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise TrackingError(
            f"there is no MLflow database {uri.removeprefix(SQLITE)}; set tracking.uri or "
            "MLFLOW_TRACKING_URI to where your runs are"
        )
    quiet_client.quiet()
    import mlflow

    client = quiet_client.guarded(
        mlflow.MlflowClient(tracking_uri=uri, registry_uri=spec.registry_uri or uri), uri
    )
    with quiet_client.no_patience(spec.timeout_s):
        client.search_experiments(max_results=1)
    quiet_client.patience(spec.timeout_s)
    return Store(uri, spec.registry_uri, client, path_map or {})
