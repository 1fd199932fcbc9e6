"""An MlflowClient that stays quiet, gives up in time, and whose every error is a TrackingError."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from mergeops.errors import TrackingError
from mergeops.tracking.keys import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

STORAGE_PACKAGES = ("botocore", "boto3", "sqlalchemy", "google", "azure")
REASONS = (
    ("refused", "connection refused"),
    ("Name or service not known", "unknown host name"),
    ("name resolution", "unknown host name"),
    ("getaddrinfo", "unknown host name"),
    ("No route to host", "no route to host"),
    ("timed out", "no answer in time"),
    ("Connection aborted", "connection lost"),
    ("reset by peer", "connection lost"),
    ("certificate", "its TLS certificate is not trusted"),
)
NO_MLFLOW = ("not in a valid JSON format", "failed with error code 404", "error code 405")


def quiet() -> None:
    """Keep MLflow's log lines, links, bars and warnings out of the user's terminal."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    warnings.filterwarnings("ignore", module=r"mlflow(\..*)?$")
    import mlflow  # noqa: F401 - its import sets up the loggers that are turned down here

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def patience(timeout_s: int) -> None:
    """Let later requests be retried for about ``timeout_s``, where the user has not chosen.

    MLflow's own default of seven retries with doubling waits keeps a command hanging for minutes
    when the server is gone.
    """
    # urllib3 waits 0, 4, 8, 16, ... s before retries 1, 2, 3, 4, ... with MLflow's factor of 2.
    retries, waited = 1, 0
    while waited + 2 * 2**retries <= timeout_s and retries < 7:
        waited += 2 * 2**retries
        retries += 1
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))


@contextmanager
def no_patience(timeout_s: int) -> Iterator[None]:
    """One short try for each request in the block."""
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def guarded(client: MlflowClient, uri: str) -> MlflowClient:
    """The client with every error translated; see ``translated``."""
    return cast("MlflowClient", _Guarded(client, uri))


class _Guarded:
    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client = client
        self._uri = uri

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._client, name)
        if not callable(member):
            return member

        @functools.wraps(member)
        def call(*args: Any, **kwargs: Any) -> Any:
            with translated(self._uri, name.replace("_", " ")):
                return member(*args, **kwargs)

        return call


@contextmanager
def translated(uri: str, what: str) -> Iterator[None]:
    """Raise errors of MLflow, the network, the database and the artifact store as TrackingError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(_explain(str(error), uri, what)) from error
    except OSError as error:
        raise TrackingError(_explain(str(error), uri, what)) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in STORAGE_PACKAGES:
            raise
        raise TrackingError(_explain(str(error), uri, what)) from error


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log the parameters that the run does not have yet; one that is there cannot be changed."""
    from mlflow.entities import Param

    logged = client.get_run(run_id).data.params
    missing = [Param(name, value) for name, value in params.items() if name not in logged]
    for start in range(0, len(missing), 100):
        client.log_batch(run_id, params=missing[start : start + 100])


def error_code(error: TrackingError) -> str:
    """MLflow's code of the error, e.g. ``RESOURCE_ALREADY_EXISTS``; empty where there is none."""
    return str(getattr(error.__cause__, "error_code", ""))


def is_missing(error: TrackingError) -> bool:
    """Whether the error says that the thing asked for does not exist."""
    return error_code(error) in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")


def is_gone(error: BaseException | None) -> bool:
    """Whether the error says that the server cannot be reached (and asking again is in vain)."""
    return isinstance(error, TrackingError) and str(error).startswith("cannot reach ")


def _explain(message: str, uri: str, what: str) -> str:
    where = redact(uri)
    if uri.startswith("http") and (
        "API request to" in message or "Max retries" in message or "Connection" in message
    ):
        if " 401" in message or " 403" in message:
            return _denied(message, where)
        reason = next((text for sign, text in REASONS if sign in message), "")
        if reason:
            return (
                f"cannot reach the MLflow server at {where} ({reason}); start it, or set "
                "tracking.uri or MLFLOW_TRACKING_URI; finished work is kept, so run the same "
                "command again then"
            )
    if "UNAUTHENTICATED" in message or "PERMISSION_DENIED" in message:
        return _denied(message, where)
    if uri.startswith("http") and any(sign in message for sign in NO_MLFLOW):
        return (
            f"the server at {where} does not answer like an MLflow server; check host, port and "
            "path of tracking.uri or MLFLOW_TRACKING_URI"
        )
    # SQLAlchemy adds the statement and a link.
    line = " ".join(redact(message.split("[SQL:")[0]).split())
    line = line.removeprefix("RESOURCE_DOES_NOT_EXIST: ").removeprefix("INVALID_PARAMETER_VALUE: ")
    return f"MLflow at {where} could not {what}: {line[:300]}"


def _denied(message: str, where: str) -> str:
    if "Invalid Host header" in message:
        return (
            f"the MLflow server at {where} refuses requests under this host name; start it with "
            "--allowed-hosts, or use the name it knows"
        )
    return (
        f"the MLflow server at {where} denies access; set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    )
