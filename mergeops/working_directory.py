"""The directory that a merge works in, beside its output: one process's at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mergeops.checkpoint.finished import JOURNAL
from mergeops.checkpoint.manifest import MANIFEST
from mergeops.checkpoint.writer import sync_directory
from mergeops.errors import MergeError

LOCK = "lock"
DOOMED = ".deleting"
"""Ends the name of what is being deleted."""
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(partial: Path) -> Iterator[None]:
    """Own the working directory, which is made; waits while another process has it, and says so.

    Raises:
        MergeError: it cannot be made, or somebody else's files are in it.
    """
    try:
        while True:
            _make(partial)
            with contextlib.suppress(FileNotFoundError):
                _refuse_foreign(partial)
                lock = os.open(partial / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _log.warning("another process is merging in %s; waiting for it", partial)
                    fcntl.flock(lock, fcntl.LOCK_EX)
                # The one before may have finished and taken the directory away meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(lock), os.stat(partial / LOCK)):
                        break
                os.close(lock)
    except OSError as error:
        raise MergeError(f"{partial} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        os.close(lock)


def discard(partial: Path) -> None:
    """Delete a working directory, under another name: who waits for its lock begins a new one.

    What cannot be deleted is left to gc: NFS keeps the lock as long as it is open.
    """
    doomed = partial.with_name(f"{partial.name}.{os.urandom(4).hex()}{DOOMED}")
    with contextlib.suppress(OSError):
        os.rename(partial, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _make(directory: Path) -> None:
    """Make a directory whose name is on the disk, and those above it."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_directory(path.parent)


def _refuse_foreign(partial: Path) -> None:
    names = {path.name for path in partial.iterdir()}
    if names and not names & {LOCK, JOURNAL, MANIFEST}:
        raise MergeError(
            f"{partial} holds {min(names)}, which no merge put there; a merge works in this "
            "directory and deletes what is in it: move it away, or choose another output"
        )
