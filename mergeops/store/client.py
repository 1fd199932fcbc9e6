"""An MlflowClient that stays quiet, gives up in time, and whose every error is a TrackingError."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mergeops.errors import AwayError, TrackingError
from mergeops.redact import redact, redacted_line
from mergeops.store.permissions import denied
from mergeops.store.workspaces import enter

if TYPE_CHECKING:
    from mlflow import MlflowClient

STORAGE_PACKAGES = ("botocore", "boto3", "s3transfer", "sqlalchemy", "google", "azure")
READERS = ("mlflow", "json", *STORAGE_PACKAGES, "dateutil", "urllib3", "requests", "http", "xml")
"""Packages whose code reads what servers and stores answer."""
REASONS = (
    ("refused", "connection refused"),
    ("Name or service not known", "unknown host name"),
    ("name resolution", "unknown host name"),
    ("getaddrinfo", "unknown host name"),
    ("No route to host", "no route to host"),
    ("timed out", "no answer in time"),
    ("too many 429", "it asks for fewer requests"),
    ("too many 5", "it fails inside; its log says why"),
    ("Connection aborted", "connection lost"),
    ("RemoteDisconnected", "connection lost"),
    ("reset by peer", "connection lost"),
    ("Connection broken", "connection lost"),
    ("certificate", "its TLS certificate is not trusted"),
)
FAILED_INSIDE = (" error code 500", " error code 502", " error code 503", " error code 504")
NO_MLFLOW = ("not in a valid JSON format", "failed with error code 404", "error code 405")
UNREACHABLE = ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError")
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError")
REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "(403)")
REGISTRY_VARIABLE = "MLFLOW_REGISTRY_URI"
PACKAGES = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "'psycopg[binary]'",
    "google": "google-cloud-storage",
    "google.cloud": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
    "azure.storage": "azure-storage-blob azure-identity",
    "azure.identity": "azure-identity",
}
"""Where a module's package has another name."""
DATABASE_GONE = ("could not connect", "connection failed", "closed the connection", "refused")

Result = TypeVar("Result")


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
    """Two short tries, one right after the other, for each request in the block.

    One would not do: a server closes connections that were idle for some seconds, and a request
    that is just then on its way is lost.
    """
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, timeout_s // 2)),
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


def chosen_registry(uri: str, registry_uri: str | None = None) -> str | None:
    """Where the registered models of a tracking server are, by one rule for all of mergeops.

    Args:
        uri: of the tracking server.
        registry_uri: what the recipe says, where it does.

    Returns:
        What the recipe says, else MLFLOW_REGISTRY_URI, else the tracking server; None for
        Databricks, where MLflow chooses the catalog.
    """
    chosen = registry_uri or os.environ.get(REGISTRY_VARIABLE)
    return chosen or (None if uri.startswith("databricks") else uri)


def new_client(uri: str, registry_uri: str | None = None) -> MlflowClient:
    """MLflow's own client of a tracking server and of its registry, see ``chosen_registry``."""
    import mlflow

    return mlflow.MlflowClient(uri, chosen_registry(uri, registry_uri))


def guarded(client: MlflowClient, uri: str, workspace: str | None) -> MlflowClient:
    """The client with every request sent in this workspace, see ``enter``, and every error
    translated; see ``translated``."""
    return cast("MlflowClient", _Guarded(client, uri, workspace))


def absent() -> MlflowClient:
    """A client whose every call raises AwayError: the recipe asked to work without the server."""
    return cast("MlflowClient", _Absent())


class _Absent:
    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            raise AwayError(
                "tracking.offline is true, and this command needs the MLflow server; set "
                "tracking.offline=false"
            )

        return call


class _Guarded:
    def __init__(self, client: MlflowClient, uri: str, workspace: str | None) -> None:
        self._client = client
        self._uri = uri
        self._workspace = workspace

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._client, name)
        if not callable(member):
            return member

        @functools.wraps(member)
        def call(*args: Any, **kwargs: Any) -> Any:
            with translated(self._uri, name.replace("_", " "), about=_named(name, args, kwargs)):
                enter(self._workspace)
                return member(*args, **kwargs)

        return call


def missing_package(error: ImportError) -> tuple[str, str]:
    """The module that is missing, and the words after ``pip install`` that bring it."""
    name = error.name or str(error)
    return name, PACKAGES.get(name, name)


@contextmanager
def translated(uri: str, what: str, location: str = "", about: str = "") -> Iterator[None]:
    """Raise errors of MLflow, the network, the database and the artifact store as TrackingError.

    Args:
        uri: of the tracking server.
        what: the step that failed, in words.
        location: the artifact store that the block talks to, where it does.
        about: the name of the thing that the step is about, where it has one.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except TrackingError:
        raise
    except ImportError as error:
        missing, wanted = missing_package(error)
        raise TrackingError(
            f"{redact(location or uri)} needs the package {missing}; install it: "
            f"pip install {wanted}"
        ) from error
    except Exception as error:
        package = type(error).__module__.split(".")[0]
        # Some errors of a store's package are network errors as well.
        if package in STORAGE_PACKAGES and package != "sqlalchemy":
            raise _explain_store(error, uri, what, location) from error
        if package == "sqlalchemy" or isinstance(error, MlflowException | OSError):
            raise _explain(error, uri, what, about) from error
        if uri.startswith("http") and is_unreadable(error):
            raise TrackingError(
                f"the server at {redact(uri)} answers in a way that MLflow's client cannot read, "
                f"asked to {what} ({type(error).__name__}: {redacted_line(str(error))[:200]}); "
                "check that it is an MLflow server of this version"
            ) from error
        raise


def is_unreadable(error: BaseException) -> bool:
    """Whether the client of a server or a store, or what it reads answers with, fell over one."""
    frame, package = error.__traceback__, ""
    while frame is not None:
        package = str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        frame = frame.tb_next
    return package in READERS


def is_missing(error: TrackingError) -> bool:
    """Whether the error says that the thing asked for does not exist."""
    return _code(error) in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")


def is_denied(error: TrackingError) -> bool:
    """Whether the error says that the account may not do what was asked."""
    return _code(error) == "PERMISSION_DENIED"


def is_taken(error: TrackingError) -> bool:
    """Whether the error says that there is a thing of that name already."""
    return _code(error) in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")


def _named(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The registered model or experiment that a call of MLflow's client names."""
    by_name = ("registered_model", "model_version", "experiment_by_name", "create_experiment")
    name = args[0] if args else kwargs.get("name", "")
    is_named = any(part in method for part in by_name) and not method.startswith("search")
    return name if is_named and isinstance(name, str) else ""


def _code(error: TrackingError) -> str:
    return str(getattr(error.__cause__, "error_code", ""))


def or_none(ask: Callable[[], Result]) -> Result | None:
    """What MLflow answers; None where it says that the thing does not exist."""
    try:
        return ask()
    except TrackingError as error:
        if not is_missing(error):
            raise
        return None


def pages(search: Callable[..., Any], *wanted: Any, **how: Any) -> Iterator[list[Any]]:
    """All pages of one of MLflow's searches.

    Raises:
        TrackingError: the server leads back to a page that it has given.
    """
    token, given = None, set()
    while True:
        page = search(*wanted, **how, page_token=token)
        yield page
        token = page.token
        if not token:
            return
        if token in given:
            raise TrackingError(
                "the MLflow server gives the same page of its answer again and again; check that "
                "it is an MLflow server of this version"
            )
        given.add(token)


def _explain(error: BaseException, uri: str, what: str, about: str) -> TrackingError:
    where, message = redact(uri), str(error)
    if uri.startswith("http"):
        reason = next((text for sign, text in REASONS if sign in message), "")
        is_request = any(
            sign in message for sign in ("API request to", "Max retries", "Connection", "HTTP")
        )
        if is_request and (" 401" in message or " 403" in message):
            return denied(message, where, what, about)
        if any(sign in message for sign in FAILED_INSIDE):
            reason = "it fails inside; its log says why"
            is_request = True
        if is_request and reason:
            return AwayError(
                f"cannot reach the MLflow server at {where} ({reason}); start it, or set "
                "tracking.uri or MLFLOW_TRACKING_URI; finished work is kept, so run the same "
                "command again then"
            )
    if "UNAUTHENTICATED" in message or "PERMISSION_DENIED" in message:
        return denied(message, where, what, about)
    if uri.startswith("http") and any(sign in message for sign in NO_MLFLOW):
        return TrackingError(
            f"the server at {where} does not answer like an MLflow server; check host, port and "
            "path of tracking.uri or MLFLOW_TRACKING_URI"
        )
    # SQLAlchemy adds the statement and a link.
    line = redacted_line(message.split("[SQL:")[0])
    line = line.removeprefix("RESOURCE_DOES_NOT_EXIST: ").removeprefix("INVALID_PARAMETER_VALUE: ")
    if not uri.startswith(("http", "sqlite")) and any(sign in message for sign in DATABASE_GONE):
        return AwayError(f"cannot reach the MLflow database at {where}: {line}")
    return TrackingError(f"MLflow at {where} could not {what}: {line}")


def _explain_store(error: Exception, uri: str, what: str, location: str) -> TrackingError:
    name, message = type(error).__name__, str(error)
    where = f"the artifact store {redact(location)}".rstrip()
    if name in NO_CREDENTIALS:
        return AwayError(
            f"{where} asks for credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE"
        )
    if name in UNREACHABLE or "Could not connect" in message:
        endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
        at = f" at MLFLOW_S3_ENDPOINT_URL={redact(endpoint)}" if endpoint else ""
        return AwayError(f"cannot reach {where}{at}; check that it runs, and its address")
    if any(sign in message for sign in REFUSED):
        return AwayError(
            f"{where} denies access: {redacted_line(message)}; check the AWS credentials"
        )
    if "NoSuchBucket" in message:
        return TrackingError(
            f"{where} has no such bucket; make it, or check MLFLOW_S3_ENDPOINT_URL"
        )
    return TrackingError(f"MLflow at {redact(uri)} could not {what}: {redacted_line(message)}")
