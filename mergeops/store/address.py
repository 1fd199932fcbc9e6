"""Which server is meant, and whether anything answers there: before MLflow is asked.

The recipe's URI comes first, then MLFLOW_TRACKING_URI, then a database in this directory.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from mergeops.errors import AwayError, TrackingError
from mergeops.recipe import TrackingSpec
from mergeops.redact import redact
from mergeops.store.database import SQLITE, database_file

DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Database schemes that MLflow talks to directly, and their ports."""


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


def check_reachable(uri: str, timeout_s: int) -> None:
    """Try the port of a server, or the directory of an sqlite file.

    Raises:
        TrackingError: nothing answers within ``timeout_s`` seconds (``AwayError``), or the
            directory is not there or not writable.
    """
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
