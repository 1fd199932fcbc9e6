"""Writing one safetensors file front to back, so that a killed merge can go on where it was.

The journal keeps, for each finished tensor, the sha256 of the file from its first byte to the end
of that tensor. A resumed file is read once: that verifies what is there and leaves the running
digest where the writing goes on; at the end it is the digest of the file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from mergeops.errors import MergeError

JOURNAL = "journal.jsonl"
_READ_BYTES = 1 << 22
FLUSH_BYTES = 1 << 25


@dataclass(frozen=True)
class WrittenFile:
    """A finished file."""

    sha256: str
    size: int


class Journal:
    """Finished tensors of an unfinished merge.

    Args:
        directory: where the merge is written.
        plan_digest: of the merge; a journal of another one is discarded.
    """

    def __init__(self, directory: Path, plan_digest: str) -> None:
        self._path = directory / JOURNAL
        self.finished: dict[tuple[str, str], str] = {}
        """(file, tensor) -> sha256 of the file up to the tensor's end."""
        head = {"plan_digest": plan_digest}
        lines, valid = _read_lines(self._path)
        if not lines or lines[0] != head:
            lines, valid = [], 0
        for line in lines[1:]:
            self.finished[line["file"], line["tensor"]] = line["sha256"]
        # What a crash tore off the last line must not end up inside the next one.
        self._path.touch()
        os.truncate(self._path, valid)
        self._file: IO[str] = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        if not lines:
            self._append(head)

    def add(self, file: str, tensor: str, sha256: str) -> None:
        """Remember a finished tensor."""
        self._append({"file": file, "tensor": tensor, "sha256": sha256})

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()

    def _append(self, line: Mapping[str, str]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class ShardWriter:
    """Writes one file of known layout in order.

    Args:
        path: the file.
        header: its first bytes.
        tensors: (name, bytes) in order.
        journal: where finished tensors are noted, and found.

    Raises:
        MergeError: the file cannot be written.
    """

    def __init__(
        self, path: Path, header: bytes, tensors: Sequence[tuple[str, int]], journal: Journal
    ) -> None:
        self._path = path
        self._journal = journal
        self._digest = hashlib.sha256()
        self._size = len(header) + sum(size for _, size in tensors)
        self.done: list[str] = []
        """Tensors that an earlier try finished."""
        self._file = _open(path, self._size)
        self._position = 0
        self._resume(len(header), tensors)
        if not self.done:
            self._digest, self._position = hashlib.sha256(), 0
            self.write(memoryview(header))

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._position

    def write(self, data: memoryview) -> None:
        """Append bytes.

        Raises:
            MergeError: the disk is full or fails.
        """
        self._digest.update(data)
        view = data
        try:
            while view:
                n = os.pwrite(self._file, view, self._position)
                self._position += n
                view = view[n:]
        except OSError as error:
            raise write_error(self._path, error) from error
        done, now = (at // FLUSH_BYTES for at in (self._position - len(data), self._position))
        if now > done:
            # Has the system begin to write these to the disk, so that the last fsync waits less.
            # Not a sync here: that would take the disk's errors away from the last one.
            start, length = done * FLUSH_BYTES, (now - done) * FLUSH_BYTES
            os.posix_fadvise(self._file, start, length, os.POSIX_FADV_DONTNEED)

    def finish_tensor(self, name: str) -> None:
        """Note that all bytes up to here are written."""
        self._journal.add(self._path.name, name, self._digest.hexdigest())

    def finish(self) -> WrittenFile:
        """Bring the file to the disk and close it."""
        assert self._position == self._size, f"{self._path} ends at byte {self._position}"
        try:
            os.fsync(self._file)
        except OSError as error:
            raise write_error(self._path, error) from error
        self.close()
        return WrittenFile(self._digest.hexdigest(), self._size)

    def close(self) -> None:
        """Close the file, finished or not."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _resume(self, header_size: int, tensors: Sequence[tuple[str, int]]) -> None:
        known = self._journal.finished
        digest = hashlib.sha256()
        position, end = 0, header_size
        for name, size in tensors:
            end += size
            expected = known.get((self._path.name, name))
            if expected is None or not self._hash_range(digest, position, end):
                break
            position = end
            if digest.hexdigest() != expected:
                break
            self.done.append(name)
            self._digest, self._position = digest.copy(), position

    def _hash_range(self, digest: hashlib._Hash, start: int, stop: int) -> bool:
        while start < stop:
            data = os.pread(self._file, min(_READ_BYTES, stop - start), start)
            if not data:
                return False
            digest.update(data)
            start += len(data)
        return True


class OrderedWriter:
    """A thread that does what it is given, in order, while the caller computes on.

    Args:
        limit: how much may wait; ``submit`` then waits, too.
    """

    def __init__(self, limit: int) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._limit = limit
        self._waiting: deque[Future[None]] = deque()

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Do this next.

        Raises:
            MergeError: of something that was submitted before.
        """
        self._waiting.append(self._pool.submit(function, *arguments))
        while len(self._waiting) > self._limit or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def drain(self) -> None:
        """Wait until everything is done; raises as ``submit``."""
        while self._waiting:
            self._waiting.popleft().result()

    def settle(self) -> None:
        """Wait until nothing is under way, whatever came of it."""
        while self._waiting:
            self._waiting.popleft().exception()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.settle()
        self._pool.shutdown(wait=True)


def write_error(path: Path, error: OSError) -> MergeError:
    """The error for a failed write."""
    return MergeError(
        f"{path} cannot be written: {error.strerror or error}; what is done so far is kept, and "
        "the same command goes on from there"
    )


def sync_directory(path: Path) -> None:
    """Bring a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path, size: int) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(file, size)
            # A full disk shows here, not hours later; some file systems cannot reserve, though.
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                os.close(file)
                raise
    except OSError as error:
        raise write_error(path, error) from error
    return file


def _read_lines(path: Path) -> tuple[list[dict[str, str]], int]:
    """The lines of a journal up to the first that a crash tore, and how many bytes they are."""
    lines: list[dict[str, str]] = []
    size = 0
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return lines, size
    for text in content.splitlines(keepends=True):
        try:
            line = json.loads(text)
        except ValueError:
            break
        whole = {"plan_digest"} if not lines else {"file", "tensor", "sha256"}
        if not text.endswith(b"\n") or not isinstance(line, dict) or line.keys() != whole:
            break
        lines.append(line)
        size += len(text)
    return lines, size
