"""The MLflow server and the experiment that a recipe names, checked before any work starts."""

from __future__ import annotations

import dataclasses
import os
import socket
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mergeops.errors import AwayError, TrackingError
from mergeops.recipe import Recipe
from mergeops.secrets import redact
from mergeops.settings import TrackingSpec
from mergeops.tracking import client as quiet_client
from mergeops.tracking.keys import file_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow import MlflowClient

    from mergeops.evaluate import Scores
    from mergeops.plan import Plan
    from mergeops.sources import Resolved, Source
    from mergeops.tracking.score_records import ScoreRecords
    from mergeops.tracking.scores import Scored
    from mergeops.tracking.search_run import SearchRun
    from mergeops.tracking.trial_run import Trial

EXPERIMENT_KIND = "mlflow.experimentKind"
SQLITE = "sqlite:///"
DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Database schemes that MLflow talks to directly, and their ports."""


@dataclass(frozen=True)
class Tracking:
    """A reachable server and its experiment; made by ``connect``."""

    spec: TrackingSpec
    uri: str
    """Tracking URI as MLflow is told; may hold credentials, so show ``shown_uri``."""
    client: MlflowClient
    """Its errors are TrackingErrors."""
    experiment_id: str

    @property
    def shown_uri(self) -> str:
        """The URI without credentials."""
        return str(redact(self.uri))

    def trial(
        self,
        recipe: Recipe,
        plan: Plan,
        resolved: Resolved,
        *,
        name: str,
        parent_run_id: str | None = None,
    ) -> AbstractContextManager[Trial]:
        """The run of a plan, found or started, for the block; see ``tracking.trial``."""
        from mergeops.tracking import trial

        return trial.trial(
            self,
            recipe,
            plan.digest,
            resolved.sources,
            resolved.base,
            plan=plan.to_dict(),
            name=name,
            parent_run_id=parent_run_id,
        )

    def reopen(self, run_id: str) -> Trial:
        """A finished trial, to log more onto it (confirm scores, the gate's verdict)."""
        from mergeops.tracking import trial

        return trial.reopen(self, run_id)

    def recipe(self, run_id: str) -> dict[str, Any]:
        """The recipe of a trial, as ``Recipe.from_dict`` reads it."""
        from mergeops.tracking import trial

        return trial.read_recipe(self, run_id)

    def log_parent(self, source: Source, scores: Scores | None) -> str:
        """Log a base or source with its scores; gives the id of its run."""
        from mergeops.tracking import parents

        return parents.log_parent(self, source, scores)

    def search(
        self, name: str, digest: str, settings: dict[str, object]
    ) -> AbstractContextManager[SearchRun]:
        """The run of a search, found or started, for the block; see ``tracking.search_run``."""
        from mergeops.tracking import search_run

        return search_run.search_run(self, name, digest, settings)

    def scored(
        self, part: str = "dev", unreadable: Callable[[str, TrackingError], None] | None = None
    ) -> list[Scored]:
        """Every parent and merge of the experiment that has scores on the part, oldest first."""
        from mergeops.tracking import scores

        return scores.scored_runs(self, part, unreadable)

    def score_records(self) -> ScoreRecords:
        """Scores that other runs and machines have made; see ``tracking.score_records``."""
        from mergeops.tracking.score_records import ScoreRecords

        return ScoreRecords(self)

    def experiment(self, name: str) -> str:
        """The id of another experiment of this store, found or made."""
        return _experiment(self.client, self.uri, name, create=True)


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
    with quiet_client.no_patience(spec.timeout_s):
        found = _experiment(tracking.client, tracking.uri, spec.experiment, create)
    return dataclasses.replace(tracking, experiment_id=found)


def connect_to_server(spec: TrackingSpec) -> Tracking:
    """Reach the server for what is in no one experiment: its ``experiment_id`` is empty.

    Raises:
        TrackingError: as ``connect``.
    """
    uri = chosen_uri(spec)
    if spec.offline:
        return Tracking(spec, uri, quiet_client.absent(), "")
    _check_reachable(uri, spec.timeout_s)
    quiet_client.quiet()
    import mlflow

    mlflow.set_tracking_uri(uri)
    if spec.registry_uri:
        mlflow.set_registry_uri(spec.registry_uri)
    with quiet_client.no_patience(spec.timeout_s), quiet_client.translated(uri, "open the store"):
        plain = mlflow.MlflowClient(tracking_uri=uri, registry_uri=spec.registry_uri)
    quiet_client.patience(spec.timeout_s)
    return Tracking(spec, uri, quiet_client.guarded(plain, uri), "")


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
        quiet_client.quiet()
        import mlflow

        client = quiet_client.guarded(mlflow.MlflowClient(tracking_uri=uri), uri)
        with quiet_client.no_patience(spec.timeout_s):
            client.search_experiments(max_results=1)
    return str(redact(uri))


def chosen_uri(spec: TrackingSpec) -> str:
    """The recipe's URI, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in this directory.

    Raises:
        TrackingError: a file store or a scheme that MLflow does not know.
    """
    uri = spec.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith(SQLITE):
        # Absolute, so that a later change of directory does not start a second database.
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).expanduser().absolute())
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
        folder = Path(uri.removeprefix(SQLITE)).parent
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
    found = client.get_experiment_by_name(name)
    if found is None and not create:
        raise TrackingError(
            f"there is no experiment {name!r} at {redact(uri)}; `mergeops run` makes it, or set "
            "tracking.experiment or --experiment to another"
        )
    if found is None:
        location = _artifact_location(uri, name)
        tags = {EXPERIMENT_KIND: "custom_model_development"}
        try:
            return client.create_experiment(name, artifact_location=location, tags=tags)
        except TrackingError as error:
            if quiet_client.error_code(error) != "RESOURCE_ALREADY_EXISTS":
                raise
        # Another process was faster.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise TrackingError(f"experiment {name!r} was deleted while it was being opened")
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} is deleted in MLflow; restore it with `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`, or set tracking.experiment to "
            "another name"
        )
    if EXPERIMENT_KIND not in found.tags:
        # Without it the UI guesses, and may hide the Models and Runs tabs behind GenAI ones.
        client.set_experiment_tag(found.experiment_id, EXPERIMENT_KIND, "custom_model_development")
    return str(found.experiment_id)


def _artifact_location(uri: str, experiment: str) -> str | None:
    if not uri.startswith(SQLITE):
        return None
    folder = Path(uri.removeprefix(SQLITE)).parent / "mlartifacts" / file_name(experiment)
    return folder.as_uri()
