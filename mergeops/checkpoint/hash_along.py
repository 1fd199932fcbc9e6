"""Digests of files, made of the bytes that somebody else reads, so that they are read once.

A digest takes a file's bytes in order. Threads that read a file bring them nearly so: what comes
early waits, as a copy, for what is before it. What nobody brings (headers, tensors that are not
used, what an earlier try has merged) is read here, once it is what all others wait for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from mergeops.checkpoint.layout import FileStamp
from mergeops.errors import SourceError

_READ_BYTES = 1 << 22
_MOST_WAITING = 1 << 27
"""Bytes that wait, of all files together."""
_LEAST_WAITING = 1 << 22

Take = Callable[[int, memoryview], None]


class HashAlong:
    """Hashes files while they are read; safe to use from several threads.

    Args:
        files: path -> what the file must look like.
        sources: how many of them are read at a time.

    Raises:
        SourceError: one cannot be opened.
    """

    def __init__(self, files: Mapping[Path, FileStamp], sources: int) -> None:
        room = min(max(_MOST_WAITING // max(sources, 1), _LEAST_WAITING), _MOST_WAITING // 4)
        self._real: dict[Path, str] = {}
        self._files: dict[str, _Followed] = {}
        self._taking = threading.local()
        try:
            for path, stamp in files.items():
                real = self._real[path] = os.path.realpath(path)
                if real not in self._files:
                    self._files[real] = _Followed(path, stamp, room)
        except SourceError:
            self.close()
            raise

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """What this thread reads in the block is hashed; a method's look at a tensor beforehand
        is not, since it may jump about."""
        self._taking.on = True
        try:
            yield
        finally:
            self._taking.on = False

    def follow(self, path: Path) -> Take | None:
        """What a reader of a file calls with the position and the bytes that it just read; they
        may be overwritten when that returns. None for a file that is not hashed."""
        followed = self._files.get(os.path.realpath(path))
        if followed is None:
            return None

        def take(position: int, data: memoryview) -> None:
            if getattr(self._taking, "on", False):
                followed.take(position, data)

        return take

    def finish(self) -> dict[Path, str]:
        """Read what is left of each file; nobody may call ``follow``'s any more.

        Returns:
            Each of the files as they were given -> sha256.

        Raises:
            SourceError: one cannot be read, or is not the file that it was.
        """
        files = list(self._files.values())
        threads = max(1, min(len(files), len(os.sched_getaffinity(0))))
        with ThreadPoolExecutor(threads, thread_name_prefix="hash") as pool:
            digests = dict(zip(self._files, pool.map(_Followed.finish, files), strict=True))
        return {path: digests[real] for path, real in self._real.items()}

    def close(self) -> None:
        """Close all files."""
        for followed in self._files.values():
            followed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Followed:
    """One file, hashed up to some place."""

    def __init__(self, path: Path, stamp: FileStamp, room: int) -> None:
        self.path = path
        self._stamp = stamp
        self._room = room
        self._digest = hashlib.sha256()
        self._end = 0
        """How far it is hashed, or is being hashed by the thread that is busy."""
        self._waiting: dict[int, bytes] = {}
        self._held = 0
        self._busy = False
        self._changed = threading.Condition()
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error

    def take(self, position: int, data: memoryview) -> None:
        """Hash a piece, or keep a copy until what is before it is hashed."""
        while not self._is_taken(position, data):
            # Nobody brings what is before all that waits.
            with self._working():
                self._read_to(min(position, self._first_waiting()))

    def finish(self) -> str:
        """Read what is left; returns the digest."""
        while self._waiting:
            self._read_to(self._first_waiting())
            self._hash_waiting()
        self._read_to(self._stamp.size)
        status = os.fstat(self._file)
        if FileStamp.of(status) != self._stamp or status.st_nlink == 0:
            raise SourceError(
                f"{self.path} changed while it was merged; run the command again when nobody "
                "writes it"
            )
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _is_taken(self, position: int, data: memoryview) -> bool:
        """Hash a piece or keep it; False makes this thread the busy one, to fill the gap."""
        with self._changed:
            while self._end < position + len(data):
                is_next = not self._busy and position <= self._end
                if not is_next and (not self._waiting or self._held + len(data) <= self._room):
                    self._keep(position, data)
                    return True
                if not self._busy:
                    self._busy = True
                    break
                self._changed.wait()
            else:
                return True
        if not is_next:
            return False
        with self._working():
            self._hash(position, data)
        return True

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """The block is done by the thread that is busy, which then hashes what follows."""
        try:
            yield
            self._hash_waiting()
        except BaseException:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
            raise

    def _keep(self, position: int, data: memoryview) -> None:
        known = len(self._waiting.get(position, b""))
        if known < len(data):
            self._waiting[position] = bytes(data)
            self._held += len(data) - known

    def _first_waiting(self) -> int:
        with self._changed:
            return min(self._waiting)

    def _hash_waiting(self) -> None:
        """Hash what waits and follows, then be no longer busy."""
        while True:
            with self._changed:
                first = min(self._waiting, default=self._end + 1)
                if first > self._end:
                    self._busy = False
                    self._changed.notify_all()
                    return
                piece = self._waiting.pop(first)
                self._held -= len(piece)
                self._changed.notify_all()
            self._hash(first, memoryview(piece))

    def _hash(self, position: int, data: memoryview) -> None:
        """Take a piece that begins where the hashed bytes end, or before."""
        fresh = data[self._end - position :]
        self._digest.update(fresh)
        with self._changed:
            self._end += len(fresh)

    def _read_to(self, stop: int) -> None:
        """Read and hash bytes up to a place."""
        while self._end < stop:
            try:
                data = os.pread(self._file, min(_READ_BYTES, stop - self._end), self._end)
            except OSError as error:
                raise SourceError(
                    f"{self.path} cannot be read at byte {self._end}: {error.strerror}"
                ) from error
            if not data:
                raise SourceError(
                    f"{self.path} ends at byte {self._end}: it was cut while being read"
                )
            self._hash(self._end, memoryview(data))
