"""Downloads on this disk: each content once, named by its sha256, the longest unused leave first.

downloads/KEY/NAME     a link to ../../blobs/SHA256; the marker, written last, means complete
downloads/KEY.parts/   files that are on their way, or wait for the others
downloads/KEY.lock     shared by who uses the download, taken alone to fill or remove it
blobs/SHA256           the contents
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mergeops.checkpoint import (
    files_sha256,
    lacking,
    locked,
    remember,
    replace_with,
    size_text,
)
from mergeops.errors import SourceError

MARKER = "mergeops-download.json"
"""Written last: its presence means that every file is there and whole."""
PARTS = ".parts"
LOCK = ".lock"

_held: dict[Path, int] = {}
"""Locks of what this process uses. They end with it: a merge may read until then."""


class Downloads:
    """The downloads of one cache directory.

    Args:
        cache_dir: they are kept below it.
        limit: bytes that they may take on disk; None takes what the disk has.
    """

    def __init__(self, cache_dir: Path, limit: int | None = None) -> None:
        self._folder = cache_dir / "downloads"
        self._blobs = cache_dir / "blobs"
        self._cache_dir = cache_dir
        self._limit = limit
        self._folder.mkdir(parents=True, exist_ok=True)
        self._blobs.mkdir(exist_ok=True)

    def find(self, key: str) -> Path | None:
        """A complete download whose files are what they were when they arrived, or None.

        It stays while this process lives.
        """
        folder = self._folder / key
        if not (folder / MARKER).is_file():
            return None
        self._hold(key)
        # It may have been removed meanwhile, and nobody is served a damaged file.
        if not self.is_complete(key):
            self._release(key)
            return None
        os.utime(folder / MARKER)
        return folder

    def is_complete(self, key: str) -> bool:
        """Whether a download is there, and its files are what they were when they arrived."""
        return (self._folder / key / MARKER).is_file() and self._is_intact(self._folder / key)

    @contextmanager
    def filling(self, key: str) -> Iterator[Path]:
        """Own a download that is not complete; others wait.

        Yields:
            The directory of its parts.
        """
        self._release(key)
        parts = self._folder / f"{key}{PARTS}"
        with locked(self._folder / f"{key}{LOCK}"):
            parts.mkdir(exist_ok=True)
            yield parts

    def add(self, key: str, files: Mapping[str, tuple[Path, str]], about: str) -> None:
        """Make a download complete.

        Args:
            key: of the download, which ``filling`` holds.
            files: name -> (where it is, its sha256); they are moved.
            about: text of the marker.
        """
        folder = self._folder / key
        with locked(self._folder / LOCK):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, (path, sha256) in files.items():
                blob = self._blobs / sha256
                # One that is there already may be in use, and stays the file that it is.
                if not (blob.is_file() and self._digest([blob])[blob] == sha256):
                    _sync(path)
                    os.replace(path, blob)
                    remember(self._cache_dir, {blob: sha256})
                (folder / name).symlink_to(os.path.relpath(blob, folder))
            _sync(self._blobs)
            _sync(folder)
            with replace_with(folder / MARKER) as temporary:
                temporary.write_text(about, encoding="utf-8")
            shutil.rmtree(self._folder / f"{key}{PARTS}")
            self._sweep()

    def make_room(self, key: str, needed: int, what: str) -> None:
        """Remove the longest unused downloads until a new one fits below the limit and on the disk.

        Args:
            key: of the new one, which stays.
            needed: bytes still to come.
            what: the new one, for messages.

        Raises:
            SourceError: what is in use leaves too little.
        """
        with locked(self._folder / LOCK):
            self._sweep()
            for oldest in [*self._by_use(key), None]:
                used, free = self.used(), shutil.disk_usage(self._folder).free
                is_below = self._limit is None or used + needed <= self._limit
                if is_below and needed <= free:
                    return
                if oldest is not None:
                    self._remove(oldest)
        if not is_below:
            raise SourceError(
                f"{what} needs {size_text(needed)} in the cache {self._cache_dir}, where "
                f"{size_text(used)} of {size_text(self._limit or 0)} are in use now; raise "
                "output.cache_limit"
            )
        raise SourceError(
            f"{what}, in the cache {self._cache_dir}, needs {lacking(needed, free)} are free "
            "there; free some, or set output.dir to a place on a larger disk"
        )

    def used(self) -> int:
        """Bytes that the downloads take on disk, as ``du`` counts."""
        files = [*self._blobs.iterdir(), *self._folder.rglob("*")]
        total = 0
        for file in files:
            try:
                total += os.lstat(file).st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    def _by_use(self, key: str) -> list[str]:
        """Keys of all other downloads, the longest unused first."""
        last: dict[str, float] = {}
        for path in self._folder.iterdir():
            if path.is_dir() and (name := path.name.removesuffix(PARTS)) != key:
                marker = path / MARKER
                used = (marker if marker.exists() else path).stat().st_mtime
                last[name] = max(used, last.get(name, 0.0))
        return sorted(last, key=lambda name: last[name])

    def _remove(self, key: str) -> None:
        """Remove a download, unless somebody uses or fills it."""
        try:
            with locked(self._folder / f"{key}{LOCK}", wait=False):
                (self._folder / key / MARKER).unlink(missing_ok=True)
                shutil.rmtree(self._folder / key, ignore_errors=True)
                shutil.rmtree(self._folder / f"{key}{PARTS}", ignore_errors=True)
                self._sweep()
        except BlockingIOError:
            return

    def _sweep(self) -> None:
        """Remove contents that no download links to."""
        linked = {
            os.path.basename(os.readlink(link))
            for link in self._folder.glob("*/*")
            if link.is_symlink()
        }
        for blob in self._blobs.iterdir():
            if blob.name not in linked:
                blob.unlink()

    def _is_intact(self, folder: Path) -> bool:
        links = [path for path in folder.iterdir() if path.is_symlink()]
        if not all(link.is_file() for link in links):
            return False
        digests = self._digest(links)
        return all(os.path.basename(os.readlink(link)) == digests[link] for link in links)

    def _digest(self, files: list[Path]) -> dict[Path, str]:
        return files_sha256(files, cache_dir=self._cache_dir)

    def _hold(self, key: str) -> None:
        path = self._folder / f"{key}{LOCK}"
        if path not in _held:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(lock, fcntl.LOCK_SH)
            _held[path] = lock

    def _release(self, key: str) -> None:
        lock = _held.pop(self._folder / f"{key}{LOCK}", None)
        if lock is not None:
            os.close(lock)


def describe(uri: str, files: Mapping[str, object]) -> str:
    """The text of a marker: what was downloaded."""
    return json.dumps({"uri": uri, "files": files}, sort_keys=True)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
