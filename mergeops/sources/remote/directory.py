"""A directory of files that may be a checkpoint: on this machine, or in an artifact store.

Both kinds list and read alike, so that everything that decides what a directory is works before
any byte of weights moves. Nothing leaves the directory that it was opened at.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mergeops.checkpoint import is_too_deep
from mergeops.errors import SourceError
from mergeops.redact import redact, redacted_line
from mergeops.store import STORAGE_PACKAGES, is_unreadable, missing_package

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.store.artifact.artifact_repo import ArtifactRepository

Progress = Callable[[str, int, int], None]
"""Called with (what, bytes done, bytes in all)."""

SMALL_FILE_BYTES = 64 << 20
"""A file that is read whole (config, trainer state) is refused beyond this."""


@dataclass(frozen=True)
class DirectoryEntry:
    """One name in a directory."""

    name: str
    is_dir: bool
    size: int
    """Bytes; 0 for a directory, and where a store does not say."""


class Directory(Protocol):
    """A directory, wherever it is."""

    @property
    def shown(self) -> str:
        """Its path or URI without credentials, for messages."""

    @property
    def local(self) -> Path | None:
        """Its path, where it is on this machine."""

    def entries(self) -> list[DirectoryEntry]:
        """What it holds, by name; empty where there is no such directory."""

    def inside(self, path: str) -> Directory:
        """A directory inside; refuses to leave this one."""

    def read(self, name: str) -> bytes | None:
        """A small file's content, or None where there is none."""


@dataclass(frozen=True)
class LocalDirectory(Directory):
    """A directory on this machine."""

    path: Path
    boundary: Path | None = None
    """Links may not lead out of this directory; None for a directory that the user named."""

    @property
    def shown(self) -> str:
        return str(self.path)

    @property
    def local(self) -> Path | None:
        return self.path

    def entries(self) -> list[DirectoryEntry]:
        if not self.path.is_dir():
            return []
        if self.boundary and not self.path.resolve().is_relative_to(self.boundary.resolve()):
            raise SourceError(
                f"{self.path} leads out of {self.boundary}; only paths inside are read"
            )
        try:
            return [_entry(path) for path in sorted(self.path.iterdir())]
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def inside(self, path: str) -> LocalDirectory:
        return LocalDirectory(self.path.joinpath(*parts_of(path)), self.boundary)

    def read(self, name: str) -> bytes | None:
        file = self.path / name
        if not file.is_file():
            return None
        try:
            _check_small(str(file), file.stat().st_size)
            return file.read_bytes()
        except OSError as error:
            raise SourceError(f"{file} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class RemoteDirectory(Directory):
    """A directory in an artifact store, reached through MLflow."""

    repository: ArtifactRepository
    uri: str
    folder: str = ""
    """Path inside ``uri``, with slashes."""

    @property
    def shown(self) -> str:
        return f"{redact(self.uri.rstrip('/'))}/{self.folder}".rstrip("/")

    @property
    def local(self) -> Path | None:
        return None

    def entries(self) -> list[DirectoryEntry]:
        with self.store_errors("be listed"):
            infos = self.repository.list_artifacts(self.folder or None)
        entries = []
        for info in infos:
            # The answer is the server's: a name with a path in it would be written elsewhere.
            name = str(info.path).rsplit("/", 1)[-1]
            if name in ("", ".", "..") or "\\" in name:
                raise SourceError(f"{self.shown} lists a file named {info.path!r}; refused")
            entries.append(DirectoryEntry(name, bool(info.is_dir), int(info.file_size or 0)))
        return sorted(entries, key=lambda entry: entry.name)

    def inside(self, path: str) -> RemoteDirectory:
        folder = "/".join([*parts_of(self.folder), *parts_of(path)])
        return RemoteDirectory(self.repository, self.uri, folder)

    def read(self, name: str) -> bytes | None:
        entry = next((e for e in self.entries() if e.name == name and not e.is_dir), None)
        if entry is None:
            return None
        _check_small(f"{self.shown}/{name}", entry.size)
        with tempfile.TemporaryDirectory(prefix="mergeops-") as folder:
            arrived = self.download(name, Path(folder))
            # What the store lists and what it delivers may differ.
            _check_small(f"{self.shown}/{name}", arrived.stat().st_size)
            return arrived.read_bytes()

    def download(self, name: str, folder: Path) -> Path:
        """Copy one file into ``folder``, which must be empty.

        Returns:
            Where it is now.

        Raises:
            SourceError: the store does not deliver it.
        """
        with self.store_errors(f"deliver {name}"):
            artifact = f"{self.folder}/{name}".lstrip("/")
            download: Callable[..., str] = self.repository.download_artifacts
            return Path(download(artifact, dst_path=str(folder)))

    @contextmanager
    def store_errors(self, what: str) -> Iterator[None]:
        """Raise what the store and its libraries raise as SourceError."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except ModuleNotFoundError as error:
            missing, wanted = missing_package(error)
            raise SourceError(
                f"{self.shown} needs the package {missing}; pip install {wanted}"
            ) from error
        except Exception as error:
            package = type(error).__module__.split(".")[0]
            if isinstance(error, MlflowException | OSError) or package in STORAGE_PACKAGES:
                pass
            elif is_unreadable(error):
                raise SourceError(
                    f"{self.shown} cannot {what}: the store's answer cannot be read "
                    f"({type(error).__name__}: {redacted_line(error, 200)})"
                ) from error
            else:
                raise
            raise SourceError(f"{self.shown} cannot {what}: {redacted_line(error)}") from error


def read_json(directory: Directory, name: str) -> dict[str, Any] | None:
    """A JSON object from a small file, or None where there is no such file.

    Raises:
        SourceError: it is no JSON object, or too large.
    """
    raw = directory.read(name)
    if raw is None:
        return None
    try:
        content = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{directory.shown}/{name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{directory.shown}/{name} is no JSON object")
    if is_too_deep(content):
        raise SourceError(f"{directory.shown}/{name} is nested too deeply")
    return content


def parts_of(path: str) -> list[str]:
    """The components of a path inside a directory.

    Raises:
        SourceError: it is absolute or climbs out.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or path.startswith("/") or "\\" in path or "\0" in path:
        raise SourceError(f"the path {path!r} leaves its directory; only paths inside are allowed")
    return parts


def _entry(path: Path) -> DirectoryEntry:
    is_dir = path.is_dir()
    size = 0 if is_dir or not path.exists() else path.stat().st_size
    return DirectoryEntry(path.name, is_dir, size)


def _check_small(where: str, size: int) -> None:
    if size > SMALL_FILE_BYTES:
        raise SourceError(f"{where} has {size} bytes; at most {SMALL_FILE_BYTES} are read")


def moved(path: str, path_map: Mapping[str, str]) -> str:
    """The path or URI with its longest mapped prefix replaced.

    A prefix ends at a ``/``: ``/data`` moves ``/data/run`` and leaves ``/database`` alone.
    """
    scheme = "file://" if path.startswith("file:///") else ""
    plain = path.removeprefix(scheme)
    prefixes = {old.removeprefix("file://").rstrip("/"): old for old in path_map if old}
    fitting = [old for old in prefixes if plain == old or plain.startswith(f"{old}/")]
    if not fitting:
        return path
    longest = max(fitting, key=len)
    return path_map[prefixes[longest]].rstrip("/") + plain[len(longest) :]
