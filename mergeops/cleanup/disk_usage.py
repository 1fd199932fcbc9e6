"""What a file or directory takes on the disk, also while others write there."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a file or directory takes."""

    nbytes: int
    """Bytes on the disk."""
    freed: int
    """Of these, the bytes of files that have no other name."""
    age_s: float
    """Seconds since anything in it was written."""


def usage(path: Path) -> Usage:
    """Sizes and age of a file or directory; a merge that ends meanwhile takes files away.

    Raises:
        FileNotFoundError: it is gone.
        OSError: something in it cannot be read.
    """
    stats = [path.lstat()]
    if stat.S_ISDIR(stats[0].st_mode):
        for folder, folders, files in os.walk(path, onerror=_unless_gone):
            for name in (*folders, *files):
                with suppress(FileNotFoundError):
                    stats.append(os.lstat(os.path.join(folder, name)))
    files_only = [entry for entry in stats if not stat.S_ISDIR(entry.st_mode)]
    return Usage(
        sum(entry.st_blocks * 512 for entry in files_only),
        sum(entry.st_blocks * 512 for entry in files_only if entry.st_nlink == 1),
        max(0.0, time.time() - max(entry.st_mtime for entry in stats)),
    )


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
