"""One process at a time: a lock file on this machine that the kernel frees when its holder dies."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
            held.enter_context(locked(path, wait=wait))
        except OSError as error:
            raise TrackingError(
                f"{what} is being worked on by process {path.read_text().strip() or 'unknown'}; "
                "wait until it has ended, then run the same command again"
            ) from error
        path.write_text(str(os.getpid()))
        yield


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"mergeops-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise TrackingError(f"{folder} belongs to another user; set TMPDIR to a directory of yours")
    return folder
