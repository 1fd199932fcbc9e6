"""Writing one safetensors file front to back, so that a killed merge can go on where it was.

Two threads do it: one writes, the other takes what is written into the file's digest, which takes
longer. The journal keeps a checksum of each finished tensor (XXH3, 128 bits, as fast as memory). A
resumed file is read once: what is as the journal says is kept, whatever is not is written again,
and the running sha256 is where the digest goes on; at the end it is that of the file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self

import xxhash

from mergeops.checkpoint import WrittenFile, sync_or_remove
from mergeops.errors import MergeError
from mergeops.planning import Shard

_READ_BYTES = 1 << 22
FLUSH_BYTES = 1 << 25
JOURNAL = "journal.jsonl"
_log = logging.getLogger(__name__)


def journal_of(shard: Shard) -> str:
    """The name of the journal of one file that is written by a worker of its own."""
    return f"{shard.name}.{JOURNAL}"


class Journal:
    """Finished tensors of an unfinished merge; those of another plan are dropped with a warning.

    Args:
        directory: where the merge works.
        plan_digest: what names the plan.
        before: what named the plan when its inputs were not hashed yet.
    """

    def __init__(
        self, directory: Path, plan_digest: str, before: str = "", *, name: str = JOURNAL
    ) -> None:
        self._path = directory / name
        self.finished: dict[tuple[str, str], str] = {}
        """(file, tensor) -> XXH3 of the tensor's bytes, 32 hexadecimal digits."""
        head = {"plan_digest": plan_digest}
        lines, valid = _read_lines(self._path)
        if not lines or lines[0] not in (head, {"plan_digest": before}):
            if len(lines) > 1:
                _log.warning(
                    "%s held the unfinished work of another merge (plan %s), which is replaced",
                    directory,
                    lines[0]["plan_digest"][:12],
                )
            lines, valid = [], 0
        for line in lines[1:]:
            self.finished[line["file"], line["tensor"]] = line["xxh3"]
        # What a crash tore off the last line must not end up inside the next one.
        self._path.touch()
        os.truncate(self._path, valid)
        self._file: IO[str] = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        if not lines:
            self._append(head)

    def add(self, file: str, tensor: str, xxh3: str) -> None:
        """Remember a finished tensor."""
        self._append({"file": file, "tensor": tensor, "xxh3": xxh3})

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()

    def _append(self, line: Mapping[str, str]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class ShardWriter:
    """Writes one file of known layout in order, past the tensors that an earlier try finished.

    Args:
        path: the file.
        header: its first bytes.
        tensors: (name, bytes) in order.
        journal: where finished tensors are noted, and found.
        progress: called with the position in the file while what is there is checked.

    Raises:
        MergeError: the file cannot be written, or not be read again.
    """

    def __init__(
        self,
        path: Path,
        header: bytes,
        tensors: Sequence[tuple[str, int]],
        journal: Journal,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._path = path
        self._journal = journal
        self._places: dict[str, tuple[int, int]] = {}
        end = len(header)
        for name, size in tensors:
            start, end = end, end + size
            self._places[name] = start, end
        self._size = end
        self.done: dict[str, str] = {}
        """Finished tensors -> XXH3; at first those that an earlier try finished."""
        self._digest = hashlib.sha256()
        self._tensor = xxhash.xxh3_128()
        self._position = 0
        self._file = _open(path, self._size)
        try:
            self._write(memoryview(header), 0)
            self.take(memoryview(header))
            self._tensor.reset()
            self._resume(progress)
        except MergeError:
            self.close()
            raise

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._position

    def write(self, tensor: str, offset: int, data: memoryview) -> None:
        """Put bytes of a tensor where they belong.

        Raises:
            MergeError: the disk is full or fails.
        """
        self._write(data, self._places[tensor][0] + offset)

    def take(self, data: memoryview) -> None:
        """Take the next bytes of the file, which are written, into the digests."""
        self._digest.update(data)
        self._tensor.update(data)
        before, self._position = self._position, self._position + len(data)
        done, now = (at // FLUSH_BYTES for at in (before, self._position))
        if now > done:
            # Has the system begin to write these to the disk, so that the last fsync waits less.
            # Not a sync here: that would take the disk's errors away from the last one.
            start, length = done * FLUSH_BYTES, (now - done) * FLUSH_BYTES
            os.posix_fadvise(self._file, start, length, os.POSIX_FADV_DONTNEED)

    def finish_tensor(self, name: str) -> None:
        """Note that the bytes of a tensor are all written and taken."""
        self.done[name] = self._tensor.hexdigest()
        self._tensor.reset()
        self._journal.add(self._path.name, name, self.done[name])

    def keep(self, name: str) -> None:
        """Go past the next tensor, one of ``done``.

        Raises:
            MergeError: it cannot be read, or changes while it is read.
        """
        start, self._position = self._position, max(self._position, self._places[name][1])
        if start == self._position:
            return
        if self._hash(start, self._position, self._digest) != self.done[name]:
            raise MergeError(
                f"{self._path} changed while the merge went on; run the same command again when "
                "nobody else writes it"
            )

    def finish(self) -> WrittenFile:
        """Bring the file to the disk and close it.

        Raises:
            MergeError: the disk fails; the file is removed.
        """
        assert self._position == self._size, f"{self._path} ends at byte {self._position}"
        try:
            sync_or_remove(self._file, self._path)
        except OSError as error:
            raise write_error(self._path, error) from error
        self.close()
        return WrittenFile(
            self._digest.hexdigest(), self._size, {n: self.done[n] for n in self._places}
        )

    def close(self) -> None:
        """Close the file, finished or not."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, data: memoryview, position: int) -> None:
        try:
            while data:
                n = os.pwrite(self._file, data, position)
                position, data = position + n, data[n:]
        except OSError as error:
            raise write_error(self._path, error) from error

    def _resume(self, progress: Callable[[int], None] | None) -> None:
        """Check what the journal says is there; the digest goes along to the first gap."""
        for name, (start, end) in self._places.items():
            expected = self._journal.finished.get((self._path.name, name))
            if expected is not None:
                is_next = self._position == start
                digest = self._digest.copy() if is_next else None
                if self._hash(start, end, digest) == expected:
                    self.done[name] = expected
                    if digest is not None:
                        self._digest, self._position = digest, end
                        if progress is not None:
                            progress(end)

    def _hash(self, start: int, stop: int, digest: hashlib._Hash | None) -> str | None:
        """XXH3 of a range of the file, which ``digest`` gets, too; None where it ends early."""
        checksum = xxhash.xxh3_128()
        while start < stop:
            try:
                data = os.pread(self._file, min(_READ_BYTES, stop - start), start)
            except OSError as error:
                raise MergeError(
                    f"{self._path} cannot be read at byte {start}: {error.strerror}; remove "
                    f"{self._path.parent} to begin again"
                ) from error
            if not data:
                return None
            checksum.update(data)
            if digest is not None:
                digest.update(data)
            start += len(data)
        return checksum.hexdigest()


class OrderedThread:
    """A thread that does what it is given, in order, while the caller computes on.

    Args:
        limit: how much may wait; ``submit`` then waits, too.
    """

    def __init__(self, limit: int) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hashing")
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

    def __exit__(self, *_: object) -> None:
        self.settle()
        self._pool.shutdown(wait=True)


def write_error(path: Path, error: OSError) -> MergeError:
    """The error for a failed write."""
    return MergeError(
        f"{path} cannot be written: {error.strerror or error}; what is done so far is kept, and "
        "the same command goes on from there"
    )


def _open(path: Path, size: int) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(file, size)
            # A full disk shows here, not hours later. Where a file system cannot reserve, glibc
            # writes to each block; some systems refuse, and the writes have to find out.
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
        except (ValueError, RecursionError):
            break
        whole = {"plan_digest"} if not lines else {"file", "tensor", "xxh3"}
        if not text.endswith(b"\n") or not isinstance(line, dict) or line.keys() != whole:
            break
        if not all(isinstance(value, str) for value in line.values()):
            break
        lines.append(line)
        size += len(text)
    return lines, size
