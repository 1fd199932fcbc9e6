"""Bytes to an artifact store, with progress inside a file, and back again to be hashed.

MLflow's own uploads show nothing until a file is there, and check nothing. The store is the one
that MLflow would use for the place:

    s3://...             boto3's multipart upload, ten parts at a time
    mlflow-artifacts:    one streamed PUT through the server; with
                         MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD parts straight to the server's store
    any other            as MLflow does it, a file at a time
"""

from __future__ import annotations

import hashlib
import io
import mimetypes
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mergeops.store.client import translated

CHUNK = 1 << 20
Tick = Callable[[int], None]
"""Called with the bytes of this file done so far."""


class ArtifactStore:
    """The artifact store of one place.

    Args:
        location: artifact URI as MLflow keeps it.
        tracking_uri: the server that ``mlflow-artifacts:`` locations go through.
    """

    def __init__(self, location: str, tracking_uri: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self.location = location
        self._tracking_uri = tracking_uri
        with translated(tracking_uri, "open its artifact store", location):
            self._store: Any = get_artifact_repository(location, tracking_uri=tracking_uri)

    def send(self, path: Path, name: str, tick: Tick | None = None) -> None:
        """Write the file ``path`` to ``name``, a path below the location whose last part is the
        file's own name.

        Raises:
            TrackingError: the store refuses, or cannot be reached (``AwayError``).
        """
        tell = tick or (lambda done: None)
        with translated(self._tracking_uri, f"store {name}", self.location):
            if is_s3(self._store):
                self._send_s3(path, name, tell)
            elif is_http(self._store) and not self._store._should_multipart_upload(str(path)):
                self._send_http(path, name, tell)
            else:
                self._store.log_artifact(str(path), name.rpartition("/")[0] or None)
        tell(path.stat().st_size)

    def sha256(self, name: str) -> str:
        """Digest of what the store holds as ``name``; nothing is kept on disk where the store
        streams.

        Raises:
            TrackingError: it is not there, or the store cannot be reached (``AwayError``).
        """
        digest = hashlib.sha256()
        with translated(self._tracking_uri, f"read {name} back", self.location):
            for chunk in self._chunks(name):
                digest.update(chunk)
        return digest.hexdigest()

    def delete(self, name: str) -> None:
        """Remove ``name``."""
        with translated(self._tracking_uri, f"delete {name}", self.location):
            self._store.delete_artifacts(name)

    def _send_s3(self, path: Path, name: str, tick: Tick) -> None:
        bucket, root = self._store.parse_s3_compliant_uri(self._store.artifact_uri)
        client = _Ticking(self._store._get_s3_client(), tick)
        self._store._upload_file(
            s3_client=client, local_file=str(path), bucket=bucket, key=f"{root}/{name}"
        )

    def _send_http(self, path: Path, name: str, tick: Tick) -> None:
        headers = {"Content-Type": mimetypes.guess_type(path.name)[0] or "application/octet-stream"}
        with _Counted(path, tick) as file:
            self._request(name, "PUT", data=file, extra_headers=headers)

    def _request(self, name: str, verb: str, **more: Any) -> Any:
        from mlflow.utils import rest_utils

        rest: Any = rest_utils
        response = rest.http_request(self._store._host_creds, f"/{name}", verb, **more)
        rest.augmented_raise_for_status(response)
        return response

    def _chunks(self, name: str) -> Iterator[bytes]:
        if is_s3(self._store):
            bucket, root = self._store.parse_s3_compliant_uri(self._store.artifact_uri)
            stored = self._store._get_s3_client().get_object(Bucket=bucket, Key=f"{root}/{name}")
            yield from stored["Body"].iter_chunks(CHUNK)
        elif is_http(self._store):
            with self._request(name, "GET", stream=True) as response:
                yield from response.iter_content(CHUNK)
        else:
            with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
                path = Path(folder) / "file"
                self._store._download_file(name, str(path))
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        yield chunk


class _Ticking:
    """A boto3 client whose uploads tell how far they are."""

    def __init__(self, client: Any, tick: Tick) -> None:
        self._client, self._tick, self._done = client, tick, 0
        # Parts are sent by several threads.
        self._lock = threading.Lock()

    def upload_file(self, **arguments: Any) -> None:
        self._client.upload_file(**arguments, Callback=self._more)

    def _more(self, sent: int) -> None:
        with self._lock:
            self._done += sent
            self._tick(self._done)


class _Counted(io.FileIO):
    """A file that tells how far it has been read."""

    def __init__(self, path: Path, tick: Tick) -> None:
        super().__init__(path, "rb")
        self._tick, self._told = tick, 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        done = self.tell()
        if done - self._told >= CHUNK:
            self._told = done
            self._tick(done)
        return data or b""


def is_s3(store: object) -> bool:
    """Whether MLflow's repository talks to an S3 store itself."""
    return type(store).__name__ == "S3ArtifactRepository"


def is_http(store: object) -> bool:
    """Whether MLflow's repository goes through an MLflow server."""
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    return isinstance(store, HttpArtifactRepository)


def local_folder(location: str) -> Path | None:
    """Where an artifact location lies on this machine's disk; None for any other storage."""
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(location) if parts.scheme == "" else None
