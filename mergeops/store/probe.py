"""What ``mergeops doctor`` asks of the server: does it answer, whom does it let in, and can
artifacts be written, read back unchanged and deleted."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from mergeops.errors import TrackingError
from mergeops.recipe import TrackingSpec
from mergeops.redact import redact
from mergeops.store.address import chosen_uri
from mergeops.store.artifacts import ArtifactStore, local_folder
from mergeops.store.client import no_patience
from mergeops.store.connection import unasked
from mergeops.store.database import SQLITE, database_file

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """Whom a server lets in."""

    detail: str
    advice: str = ""
    """What should be changed; empty where nothing should."""


def access(spec: TrackingSpec) -> Access | None:
    """Whether an HTTP server asks for a password, and whether it travels in the clear.

    Returns:
        None for databases that are opened directly.
    """
    uri = chosen_uri(spec)
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    try:
        with urlopen(
            f"{bare}/api/2.0/mlflow/experiments/search?max_results=1", timeout=spec.timeout_s
        ):
            asks = False
    except HTTPError as error:
        asks = error.code in (401, 403)
    except URLError:
        return None
    if not asks:
        return Access("open to everyone who can reach it")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or parts.username
    detail = f"{user} is let in" if user else "the token is let in"
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        return Access(detail, "the password travels in the clear: put the server behind https://")
    return Access(detail)


def try_artifacts(spec: TrackingSpec) -> str:
    """Write a small file where the experiment's artifacts go, read it back, and delete it.

    Returns:
        What was found, without credentials.

    Raises:
        TrackingError: one of the three cannot be done; says which, and what to do.
    """
    uri = chosen_uri(spec)
    if uri.startswith(SQLITE):
        return _try_folder(database_file(uri).parent)
    location = _location(spec)
    if location is None:
        return f"not tried: there is no experiment {spec.experiment!r} yet"
    store = ArtifactStore(location, uri)
    with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
        path = Path(folder) / f"mergeops-probe-{uuid.uuid4().hex}.txt"
        path.write_text("mergeops doctor wrote this, and deletes it at once\n")
        sent = hashlib.sha256(path.read_bytes()).hexdigest()
        with no_patience(spec.timeout_s):
            store.send(path, path.name)
            arrived = store.sha256(path.name)
            store.delete(path.name)
    if arrived != sent:
        raise TrackingError(f"what was written to {redact(location)} came back changed")
    return f"{redact(location)} takes, gives back and deletes files"


def _location(spec: TrackingSpec) -> str | None:
    client = unasked(spec).client
    with no_patience(spec.timeout_s):
        # Where there is no such experiment yet, it would lie beside the default one.
        nearest = client.get_experiment_by_name(spec.experiment) or client.get_experiment("0")
    location = str(nearest.artifact_location)
    return location if local_folder(location) is None or nearest.name == spec.experiment else None


def _try_folder(folder: Path) -> str:
    if not os.access(folder, os.W_OK):
        raise TrackingError(f"{folder} is not writable; artifacts would lie there")
    return f"{folder / 'mlartifacts'}, in a writable directory"
