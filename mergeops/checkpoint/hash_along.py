"""Digests of files, made of the bytes that somebody else reads, so that they are read once.

A digest takes a file's bytes in order. Threads that read a file bring them nearly so: copies wait
for what is before them, and are hashed by threads of their own. What nobody brings (headers,
tensors that are not used, what an earlier try has merged) is read here, once it is what all others
wait for.
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
_MOST_WAITING = 1 << 26
"""Bytes that wait, of all files together."""
_LEAST_WAITING = 1 << 22
PATIENCE = 0.2
"""Seconds that threads with later bytes wait for one that may bring those before."""

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
        # As many as the sources were hashed by, had they been hashed before.
        threads = max(1, min(len(files), len(os.sched_getaffinity(0))))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hash")
        try:
            for path, stamp in files.items():
                real = self._real[path] = os.path.realpath(path)
                if real not in self._files:
                    self._files[real] = _Followed(path, stamp, room, self._pool)
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
        outcomes = self._pool.map(_Followed.finish, self._files.values())
        digests = dict(zip(self._files, outcomes, strict=True))
        return {path: digests[real] for path, real in self._real.items()}

    def close(self) -> None:
        """Close all files; what waits is not hashed any more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for followed in self._files.values():
            followed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Followed:
    """One file, hashed up to some place by one thread of a pool at a time.

    Args:
        path: the file.
        stamp: what it must look like.
        room: bytes that may wait.
        pool: its threads hash.
    """

    def __init__(self, path: Path, stamp: FileStamp, room: int, pool: ThreadPoolExecutor) -> None:
        self._path = path
        self._stamp = stamp
        self._room = room
        self._pool = pool
        self._digest = hashlib.sha256()
        self._end = 0
        """How far it is hashed."""
        self._waiting: dict[int, bytes] = {}
        self._held = 0
        self._is_busy = False
        self._shall_fill = False
        """Whether what is before all that waits shall be read, since nobody brings it."""
        self._patience = PATIENCE
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error

    def take(self, position: int, data: memoryview) -> None:
        """Copy a piece, to be hashed when what is before it is; waits until there is room."""
        with self._changed:
            while self._end < position + len(data):
                if self._failure is not None:
                    raise self._failure
                has_room = not self._waiting or self._held + len(data) <= self._room
                if has_room or position <= self._end:
                    self._keep(position, data)
                    self._wake()
                    return
                is_over = not self._changed.wait(self._patience)
                if is_over and self._waiting and not self._is_busy:
                    self._shall_fill = True
                    self._wake()

    def finish(self) -> str:
        """Read what is left; returns the digest."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_busy)
        while self._waiting and self._failure is None:
            self._shall_fill = True
            self._work()
        if self._failure is not None:
            raise self._failure
        self._read_to(self._stamp.size)
        status = os.fstat(self._file)
        if FileStamp.of(status) != self._stamp or status.st_nlink == 0:
            raise SourceError(
                f"{self._path} changed while it was merged; run the command again when nobody "
                "writes it"
            )
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _keep(self, position: int, data: memoryview) -> None:
        known = len(self._waiting.get(position, b""))
        if known < len(data):
            self._waiting[position] = bytes(data)
            self._held += len(data) - known

    def _wake(self) -> None:
        """Have a thread work, where there is work and none does."""
        is_next = min(self._waiting) <= self._end
        if not self._is_busy and (is_next or self._shall_fill):
            self._is_busy = True
            self._pool.submit(self._work)

    def _work(self) -> None:
        """Hash what waits and follows; read what is before it, if that is to be done."""
        try:
            while (piece := self._next()) is not None:
                position, data = piece
                self._read_to(position)
                self._hash(position, memoryview(data))
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._is_busy = False
                self._changed.notify_all()

    def _next(self) -> tuple[int, bytes] | None:
        """The piece to hash next; None, and nobody is busy, where there is none."""
        with self._changed:
            self._changed.notify_all()
            first = min(self._waiting, default=None)
            if first is None or (first > self._end and not self._shall_fill):
                self._is_busy = self._shall_fill = False
                return None
            if first > self._end:
                # The bytes come in another order than the file's: so will others.
                self._shall_fill, self._patience = False, PATIENCE / 100
            data = self._waiting.pop(first)
            self._held -= len(data)
            return first, data

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
                    f"{self._path} cannot be read at byte {self._end}: {error.strerror}"
                ) from error
            if not data:
                raise SourceError(
                    f"{self._path} ends at byte {self._end}: it was cut while being read"
                )
            self._hash(self._end, memoryview(data))
