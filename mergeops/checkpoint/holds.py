"""Locks on the directories of merges: readers share one, the process that deletes it is alone."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergeops.checkpoint.durable import locked
from mergeops.checkpoint.manifest import MANIFEST

_held: dict[tuple[int, int], int] = {}
"""Device and inode -> descriptor. They end with the process: a merge may read until then."""


def hold(merge: Path, mark: str = MANIFEST) -> bool:
    """Keep a merge from being deleted by ``alone`` while this process lives.

    Other directories are left as they are: nobody deletes them. So is a merge on a file system
    without locks.

    Args:
        merge: its directory.
        mark: the file that says that it is one, or another thing that may be deleted.

    Returns:
        Whether the directory is still there.
    """
    try:
        if not (merge / mark).is_file():
            return merge.is_dir()
        facts = merge.stat()
        if (facts.st_dev, facts.st_ino) in _held:
            return True
        _make_room()
        lock = os.open(merge, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:
        # The reader of a directory that may not be listed says so.
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    except OSError:
        os.close(lock)
        return True
    if not _is_at(lock, merge):
        os.close(lock)
        return False
    facts = os.fstat(lock)
    _held[facts.st_dev, facts.st_ino] = lock
    return True


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Have a directory to oneself for the block.

    Raises:
        BlockingIOError: a process holds it.
        FileNotFoundError: it is gone, or another one is in its place.
        OSError: it cannot be locked, so its holder is not known.
    """
    with locked(directory, wait=False, is_directory=True) as lock:
        if not _is_at(lock, directory):
            raise FileNotFoundError(directory)
        yield


def _is_at(lock: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), directory.stat())
    except FileNotFoundError:
        return False


def _make_room() -> None:
    """Raise the soft limit of open files where a long search has come near it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and soft != resource.RLIM_INFINITY and len(_held) >= soft // 2:
        wanted = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
