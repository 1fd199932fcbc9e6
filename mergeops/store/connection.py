"""The MLflow server and the experiment that a recipe names, checked before any work starts."""

from __future__ import annotations

import dataclasses
import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from mergeops.errors import AwayError, TrackingError
from mergeops.recipe import TrackingSpec
from mergeops.redact import redact
from mergeops.store.client import (
    absent,
    chosen_registry,
    guarded,
    is_taken,
    new_client,
    no_patience,
    pages,
    patience,
    quiet,
    translated,
)
from mergeops.store.database import SQLITE, database_file, examine, ready
from mergeops.store.keys import file_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT_KIND = "mlflow.experimentKind"
NOTE = "mlflow.note.content"
"""What a page says at its head."""
DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Database schemes that MLflow talks to directly, and their ports."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """A reachable server and its experiment; made by ``connect``."""

    spec: TrackingSpec
    uri: str
    """Tracking URI as MLflow is told; may hold credentials, so show ``shown_uri``."""
    client: MlflowClient
    """Its errors are TrackingErrors."""
    experiment_id: str = ""
    """Empty where the connection is to no one experiment."""

    @property
    def shown_uri(self) -> str:
        """The URI without credentials."""
        return str(redact(self.uri))

    @property
    def registry_uri(self) -> str | None:
        """Of the registry that ``client`` uses; None where MLflow chooses it."""
        return chosen_registry(self.uri, self.spec.registry_uri)

    def run_page(self, run_id: str, *, experiment_id: str | None = None) -> str | None:
        """Where the MLflow UI shows a run, of this experiment where no other is named; None where
        no server serves it."""
        return self._page(f"experiments/{experiment_id or self.experiment_id}/runs/{run_id}")

    def version_page(self, name: str, version: int) -> str | None:
        """Where the MLflow UI shows a version of a registered model; None as ``run_page``."""
        return self._page(f"models/{quote(name, safe='')}/versions/{version}")

    def model_page(self, name: str) -> str | None:
        """Where the MLflow UI shows a registered model; None as ``run_page``."""
        return self._page(f"models/{quote(name, safe='')}")

    def experiment_page(self) -> str | None:
        """Where the MLflow UI shows the leaderboard of the experiment; None as ``run_page``."""
        return self._page(f"experiments/{self.experiment_id}/models")

    def _page(self, place: str) -> str | None:
        if not self.uri.startswith("http"):
            return None
        # Without its workflow the UI opens in GenAI mode, where models are called agent versions.
        return f"{self.shown_uri}/#/{place}?workflowType=machine_learning"

    def experiment(self, name: str, note: str) -> str:
        """The id of another experiment of this store, found or made; its page says the note."""
        experiment_id = _experiment(self.client, self.uri, name, create=True)
        if NOTE not in self.client.get_experiment(experiment_id).tags:
            self.client.set_experiment_tag(experiment_id, NOTE, note)
        return experiment_id

    def search_runs(self, filter_string: str) -> list[Run]:
        """All runs of the experiment that match, oldest first."""
        order, search = ["attributes.start_time ASC"], self.client.search_runs
        in_pages = pages(search, [self.experiment_id], filter_string, order_by=order)
        return [run for page in in_pages for run in page]

    @contextmanager
    def as_default(self) -> Iterator[None]:
        """Make this server the process's own for the block.

        Creating a model version in a database looks its LoggedModel up in the default store,
        whatever store the client was made for.
        """
        import mlflow

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)


def connect(spec: TrackingSpec, *, create: bool = True) -> Tracking:
    """Reach the server, find or create the experiment, and point MLflow at both registry and store.

    With ``spec.offline`` nothing is reached: trials are kept on disk, all else is refused.

    Args:
        spec: names server and experiment.
        create: make the experiment where there is none; commands that only read do not.

    Raises:
        TrackingError: within about ``spec.timeout_s`` seconds when the server cannot be reached or
            refuses, when the URI is none that mergeops can use, or the experiment is deleted (or
            not there, without ``create``).
    """
    tracking = connect_to_server(spec)
    if spec.offline:
        return tracking
    with no_patience(spec.timeout_s):
        experiment_id = _experiment(tracking.client, tracking.uri, spec.experiment, create)
    return dataclasses.replace(tracking, experiment_id=experiment_id)


def connect_to_server(spec: TrackingSpec) -> Tracking:
    """Reach the server for what is in no one experiment: its ``experiment_id`` is empty.

    Raises:
        TrackingError: as ``connect``.
    """
    uri = chosen_uri(spec)
    if spec.offline:
        return Tracking(spec=spec, uri=uri, client=absent())
    _check_reachable(uri, spec.timeout_s)
    tracking = unasked(spec)
    import mlflow

    mlflow.set_tracking_uri(uri)
    if spec.registry_uri:
        mlflow.set_registry_uri(spec.registry_uri)
    patience(spec.timeout_s)
    return tracking


def connect_to_read(spec: TrackingSpec) -> Tracking:
    """Reach a server or database that is there, and leave the process's own as it is.

    Raises:
        TrackingError: it cannot be reached, or the database file does not exist.
    """
    uri = chosen_uri(spec)
    if uri.startswith(SQLITE) and not os.path.lexists(database_file(uri)):
        raise TrackingError(
            f"there is no MLflow database {database_file(uri)}; set tracking.uri or "
            "MLFLOW_TRACKING_URI to where your runs are"
        )
    tracking = unasked(spec)
    _ask(tracking)
    patience(spec.timeout_s)
    return tracking


def reach(spec: TrackingSpec) -> str:
    """Check that the server answers, and change nothing there.

    Returns:
        The tracking URI without credentials.

    Raises:
        TrackingError: as ``connect``.
    """
    uri = chosen_uri(spec)
    _check_reachable(uri, spec.timeout_s)
    if not uri.startswith(SQLITE):
        _ask(unasked(spec))
    elif os.path.lexists(database_file(uri)):
        quiet()
        examine(database_file(uri), spec.timeout_s)
    return str(redact(uri))


def unasked(spec: TrackingSpec) -> Tracking:
    """A connection that has sent nothing yet; every connection of mergeops begins here.

    Raises:
        TrackingError: the file of an sqlite store can be neither used nor made, see ``ready``.
    """
    uri = chosen_uri(spec)
    quiet()
    for database in dict.fromkeys((uri, chosen_registry(uri, spec.registry_uri) or uri)):
        ready(database, spec.timeout_s)
    with no_patience(spec.timeout_s), translated(uri, "open the store"):
        client = new_client(uri, spec.registry_uri)
    return Tracking(spec=spec, uri=uri, client=guarded(client, uri))


def _ask(tracking: Tracking) -> None:
    with no_patience(tracking.spec.timeout_s):
        tracking.client.search_experiments(max_results=1)


def chosen_uri(spec: TrackingSpec) -> str:
    """The recipe's URI, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this directory.

    Raises:
        TrackingError: a file store or a scheme that MLflow does not know.
    """
    uri = spec.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith(SQLITE):
        # Absolute, so that a later change of directory does not start a second database.
        file, mark, options = uri.removeprefix(SQLITE).partition("?")
        path = str(Path(file).expanduser().absolute())
        if "?" in path:
            raise TrackingError(
                f"tracking.uri is {uri}, in the directory {path}: sqlite takes what follows a "
                "question mark for an option; use a directory without one in its name"
            )
        return SQLITE + path + mark + options
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https") or scheme.startswith("databricks") or uri == "databricks":
        return uri.rstrip("/")
    if scheme.split("+")[0] in DATABASES:
        return uri
    raise TrackingError(
        f"tracking.uri is {redact(uri)!r}; MLflow 3 keeps no runs in plain files: use http(s)://, "
        "sqlite:///FILE.db, postgresql:// or mysql://, or bring old runs over with "
        "`mlflow migrate-filestore`"
    )


def _check_reachable(uri: str, timeout_s: int) -> None:
    # MLflow itself would retry for minutes, so the port is tried first.
    parts = urlsplit(uri)
    if uri.startswith(SQLITE):
        folder = database_file(uri).parent
        if not folder.is_dir():
            raise TrackingError(f"tracking.uri is {uri}, but the directory {folder} does not exist")
        if not os.access(folder, os.W_OK):
            raise TrackingError(f"tracking.uri is {uri}, but {folder} is not writable")
        return
    default = {"http": 80, "https": 443, **DATABASES}.get(parts.scheme.split("+")[0])
    if default is None or not parts.hostname or _behind_proxy(parts.scheme, parts.hostname):
        return
    try:
        port = parts.port or default
    except ValueError as error:
        raise TrackingError(f"tracking.uri is {redact(uri)!r}: {error}") from error
    try:
        socket.create_connection((parts.hostname, port), timeout=timeout_s).close()
    except OSError as error:
        reason = "unknown host name" if isinstance(error, socket.gaierror) else str(error.strerror)
        if isinstance(error, TimeoutError):
            reason = f"no answer in {timeout_s} s"
        raise AwayError(
            f"cannot reach the MLflow server at {redact(uri)} ({reason.lower()}); start it, or set "
            "tracking.uri or MLFLOW_TRACKING_URI"
        ) from error


def _behind_proxy(scheme: str, host: str) -> bool:
    from urllib.request import getproxies, proxy_bypass

    return scheme in getproxies() and not proxy_bypass(host)


def _experiment(client: MlflowClient, uri: str, name: str, create: bool) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None and not create:
        raise TrackingError(
            f"there is no experiment {name!r} at {redact(uri)}; `mergeops run` makes it, or set "
            "tracking.experiment or --experiment to another"
        )
    if experiment is None:
        location = _artifact_location(uri, name)
        tags = {EXPERIMENT_KIND: "custom_model_development"}
        try:
            return client.create_experiment(name, artifact_location=location, tags=tags)
        except TrackingError as error:
            if not is_taken(error):
                raise
        # Another process was faster.
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise TrackingError(f"experiment {name!r} was deleted while it was being opened")
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} is deleted in MLflow; restore it with `mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}`, or set tracking.experiment to "
            "another name"
        )
    if EXPERIMENT_KIND not in experiment.tags:
        # Without it the UI guesses, and may hide the Models and Runs tabs behind GenAI ones.
        client.set_experiment_tag(
            experiment.experiment_id, EXPERIMENT_KIND, "custom_model_development"
        )
    return str(experiment.experiment_id)


def _artifact_location(uri: str, experiment: str) -> str | None:
    if not uri.startswith(SQLITE):
        return None
    folder = database_file(uri).parent / "mlartifacts" / file_name(experiment)
    return folder.as_uri()


def current_user() -> str:
    """The name that changes are recorded under.

    The user that MLflow's server authenticates (MLFLOW_TRACKING_USERNAME, or MLflow's credentials
    file), else the name of the operating system's user. The server does not check the second, and
    mergeops does not check the first: both say who, and prove nothing, unless the server
    authenticates every writer.
    """
    from mlflow.utils.credentials import read_mlflow_creds

    named = read_mlflow_creds().username
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # Containers run under numbers that no passwd file names.
        return f"uid {os.getuid()}"
