"""One process at a time: a lock file on this machine that the kernel frees when its holder dies."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mergeops.checkpoint import locked
from mergeops.errors import TrackingError


@contextmanager
def only_one(what: str, *identity: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock of ``identity`` for the block.

    Args:
        what: names the work in the error, e.g. ``the trial 'ties'``.
        identity: what makes the work the same, e.g. the server and the plan digest.
        wait: for the other process, instead of refusing.

    Raises:
        TrackingError: another process on this machine holds it.
    """
    path = _folder() / (hashlib.sha256("\n".join(identity).encode()).hexdigest()[:24] + ".lock")
    with ExitStack() as held:
        try:
            lock = held.enter_context(locked(path, wait=wait))
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        except BlockingIOError as error:
            raise TrackingError(
                f"{what} is being worked on by process {path.read_text().strip() or 'unknown'}; "
                "wait until it has ended, then run the same command again"
            ) from error
        except OSError as error:
            raise TrackingError(
                f"the lock {path} cannot be taken: {error.strerror}; set TMPDIR to a directory of "
                "yours"
            ) from error
        yield


def _folder() -> Path:
    """A directory that nobody else can write to: others may have put anything below /tmp."""
    try:
        folder = Path(tempfile.gettempdir()) / f"mergeops-{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()
    except OSError as error:
        raise TrackingError(
            f"there is no place for locks: {error}; set TMPDIR to a directory of yours"
        ) from error
    if not stat.S_ISDIR(facts.st_mode):
        raise TrackingError(f"{folder} is no directory; remove it, or set TMPDIR to another place")
    if facts.st_uid != os.getuid():
        raise TrackingError(f"{folder} belongs to another user; set TMPDIR to a directory of yours")
    if facts.st_mode & 0o022:
        raise TrackingError(
            f"others may write to {folder}; remove it, or set TMPDIR to a directory of yours"
        )
    return folder
