"""The MLflow server and the experiment that a recipe names, checked before any work starts."""

from __future__ import annotations

import dataclasses
import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from mergeops.errors import TrackingError
from mergeops.recipe import TrackingSpec
from mergeops.redact import redact
from mergeops.store.address import check_reachable, chosen_uri
from mergeops.store.client import (
    REGISTRY_VARIABLE,
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
from mergeops.store.workspaces import (
    chosen_workspace,
    enter,
    has_workspaces,
    takes_workspaces,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT_KIND = "mlflow.experimentKind"
NOTE = "mlflow.note.content"
"""What a page says at its head."""


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
    workspace: str = ""
    """That every request is sent in; empty is the server's default."""

    @property
    def place(self) -> str:
        """What tells this server and workspace from all others; may hold credentials."""
        return f"{self.uri}#{self.workspace}" if self.workspace else self.uri

    @property
    def registry_place(self) -> str:
        """As ``place``, for the registry."""
        uri = self.registry_uri or self.uri
        return f"{uri}#{self.workspace}" if self.workspace else uri

    @property
    def shown_place(self) -> str:
        """Server and workspace for a message."""
        return f"{self.shown_uri}{f', workspace {self.workspace}' if self.workspace else ''}"

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

    def links(self, run_id: str, name: str, version: int | None) -> dict[str, str]:
        """The pages of a run and of its version, ``run`` and ``version``, as far as there are."""
        pages = {
            "run": self.run_page(run_id) if run_id else None,
            "version": self.version_page(name, version) if version else None,
        }
        return {what: page for what, page in pages.items() if page is not None}

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
        within = f"&workspace={quote(self.workspace, safe='')}" if self.workspace else ""
        return f"{self.shown_uri}/#/{place}?workflowType=machine_learning{within}"

    def experiment(self, name: str, note: str) -> str:
        """The id of another experiment of this store, found or made; its page says the note."""
        experiment_id = _experiment(self.client, self.uri, name, create=True)
        if NOTE not in self.client.get_experiment(experiment_id).tags:
            self.client.set_experiment_tag(experiment_id, NOTE, note)
        return experiment_id

    def search_runs(self, *filters: str) -> list[Run]:
        """All runs of the experiment that match one of the filters, oldest first."""
        order, search = ["attributes.start_time ASC"], self.client.search_runs
        found: dict[str, Run] = {}
        for wanted in filters:
            for page in pages(search, [self.experiment_id], wanted, order_by=order):
                found |= {run.info.run_id: run for run in page}
        return sorted(found.values(), key=lambda run: int(run.info.start_time))

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
        workspace = chosen_workspace(spec, uri)
        return Tracking(spec=spec, uri=uri, client=absent(), workspace=workspace)
    check_reachable(uri, spec.timeout_s)
    tracking = unasked(spec)
    _check_workspace(tracking)
    import mlflow

    mlflow.set_tracking_uri(uri)
    if spec.registry_uri:
        before = os.environ.get(REGISTRY_VARIABLE)
        mlflow.set_registry_uri(spec.registry_uri)
        # It sets the variable, too, and the next connection is to see the user's own.
        os.environ.pop(REGISTRY_VARIABLE, None)
        if before is not None:
            os.environ[REGISTRY_VARIABLE] = before
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
    _check_workspace(tracking)
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
    check_reachable(uri, spec.timeout_s)
    if not uri.startswith(SQLITE):
        tracking = unasked(spec)
        _check_workspace(tracking)
        _ask(tracking)
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
    workspace = chosen_workspace(spec, uri)
    within = workspace if takes_workspaces(uri) else None
    with no_patience(spec.timeout_s), translated(uri, "open the store"):
        enter(within)
        client = new_client(uri, spec.registry_uri)
    return Tracking(spec=spec, uri=uri, client=guarded(client, uri, within), workspace=workspace)


def _check_workspace(tracking: Tracking) -> None:
    """Refuse a workspace that is not there: MLflow takes it for one where nothing is."""
    workspace, key = tracking.workspace, "tracking.workspace or MLFLOW_WORKSPACE"
    if not workspace:
        return
    with no_patience(tracking.spec.timeout_s):
        with translated(tracking.uri, "say what it has"):
            if not has_workspaces(tracking.uri):
                raise TrackingError(
                    f"the MLflow server at {tracking.shown_uri} has no workspaces, but {key} is "
                    f"{workspace!r}; start it with --enable-workspaces, or leave both out"
                )
        names = sorted(one.name for one in tracking.client.list_workspaces())
    if workspace not in names:
        raise TrackingError(
            f"the MLflow server at {tracking.shown_uri} has no workspace {workspace!r} that this "
            f"account may enter; it may enter: {', '.join(names) or 'none'}; set {key}"
        )


def _ask(tracking: Tracking) -> None:
    with no_patience(tracking.spec.timeout_s):
        tracking.client.search_experiments(max_results=1)


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

    Of a job of the merge service it is who submitted it (MERGEOPS_SUBMITTED_BY). Else it is the
    user that MLflow's server authenticates (MLFLOW_TRACKING_USERNAME, or MLflow's credentials
    file), else the operating system's. The server does not check the last, and mergeops does not
    check the first two: all say who, and prove nothing, unless the server authenticates every
    writer.
    """
    from mlflow.utils.credentials import read_mlflow_creds

    named = os.environ.get("MERGEOPS_SUBMITTED_BY") or read_mlflow_creds().username
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # Containers run under numbers that no passwd file names.
        return f"uid {os.getuid()}"
