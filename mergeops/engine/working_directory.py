"""The directory that a merge works in, beside its output: one process's at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mergeops.checkpoint import MANIFEST, locked, no_work, sync_directory
from mergeops.engine.writer import JOURNAL
from mergeops.errors import MergeError

LOCK = "lock"
DOOMED = ".deleting"
"""Ends the name of what is being deleted."""
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def owned(partial: Path) -> Iterator[None]:
    """Own the working directory, which is made; waits while another process has it, and says so.

    Raises:
        MergeError: it cannot be made, or somebody else's files are in it.
    """
    with contextlib.ExitStack() as lock:
        try:
            while not _is_owned(partial, lock):
                lock.close()
        except OSError as error:
            raise MergeError(f"{partial} cannot be written: {error.strerror or error}") from error
        yield


def _is_owned(partial: Path, lock: contextlib.ExitStack) -> bool:
    """Lock the working directory; False if another process took it away meanwhile."""
    _make(partial)
    with contextlib.suppress(FileNotFoundError):
        _refuse_foreign(partial)
        try:
            file = lock.enter_context(locked(partial / LOCK, wait=False))
        except BlockingIOError:
            _log.warning("another process is merging in %s; waiting for it", partial)
            file = lock.enter_context(locked(partial / LOCK))
        return os.path.samestat(os.fstat(file), os.stat(partial / LOCK))
    return False


def discard(partial: Path) -> None:
    """Delete a working directory under another name: a process that waits begins a new one.

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
    if (strange := no_work(partial)) is not None:
        raise MergeError(
            f"{partial / strange} is a link, or no file, and a merge would write where it leads; "
            "remove it, or choose another output"
        )
    names = {path.name for path in partial.iterdir()}
    if names and not names & {LOCK, JOURNAL, MANIFEST}:
        raise MergeError(
            f"{partial} holds {min(names)}, which no merge put there; a merge works in this "
            "directory and deletes what is in it: move it away, or choose another output"
        )
