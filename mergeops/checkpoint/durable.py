"""Files that are whole or not there, and locks that end with the process that holds them."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(
    path: Path, *, shared: bool = False, wait: bool = True, is_directory: bool = False
) -> Iterator[int]:
    """Hold the lock of a file or directory for the block.

    Args:
        path: a file is made where there is none, in a directory that exists, and stays; no link.
        shared: let others share the lock.
        wait: for another holder, instead of refusing.
        is_directory: the path is a directory, which is never made.

    Yields:
        The open descriptor.

    Raises:
        BlockingIOError: another process holds it, without ``wait``.
        OSError: it cannot be opened or locked.
    """
    # Somebody else's link must not make or lock a file where it leads.
    made = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    flags = os.O_RDONLY | os.O_DIRECTORY if is_directory else made
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def no_work(directory: Path) -> str | None:
    """The name of what no work of ours is: a link, a pipe, a device; ``.`` is the directory itself.

    Whoever opened one would write, or wait, elsewhere.
    """
    if directory.is_symlink():
        return "."
    with os.scandir(directory) as entries:
        strange = [
            entry.name
            for entry in entries
            if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False))
        ]
    return min(strange, default=None)


@contextmanager
def replace_with(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Give the block a temporary sibling to write, which takes the file's place at its end.

    Where the block raises, the temporary file is removed and the file is left as it was.

    Args:
        path: the file that is made or replaced.
        sync: bring the bytes to the disk before the name, so that a crash leaves no empty file.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        yield temporary
        if sync:
            sync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def keep_text(path: Path, text: str) -> None:
    """Write a file of the user's cache; where that cannot be, it is as it was."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_with(path, sync=False) as partial:
            partial.write_text(text, encoding="utf-8")


def sync_or_remove(file: int, path: Path) -> None:
    """Bring an open file to the disk, or remove it.

    The system reports only once that bytes which it still shows never got to the disk; the next
    try would believe them.

    Raises:
        OSError: the disk fails.
    """
    try:
        os.fsync(file)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """``sync_or_remove`` of a closed file."""
    with open(path, "rb") as file:
        sync_or_remove(file.fileno(), path)


def sync_directory(path: Path) -> None:
    """Bring a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
