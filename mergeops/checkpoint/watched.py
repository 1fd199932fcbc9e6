"""Whether files are as they were: by what the file system says of them, without reading any."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

MOST_FILES = 5000
"""Below one place; a larger one is not watched."""
CLOCK_STEP_NS = 50_000_000
"""A file's times are as coarse as the kernel's clock, up to some 10 ms."""

Seen = Mapping[str, list[int]]
"""Path -> size, time of its content and of its entry in ns, and number of the file; none of them
for a directory."""


def look_at(places: Iterable[Path]) -> dict[str, list[int]] | None:
    """What is there now: each file, or every file below a directory, links followed.

    Returns:
        None where a place is not there, cannot be read or holds too many files.
    """
    seen: dict[str, list[int]] = {}
    try:
        for place in places:
            if not _look_below(place.absolute(), seen):
                return None
    except OSError:
        return None
    return seen


def as_seen(places: Iterable[Path], before: Seen) -> bool:
    """Whether a second look sees the same: no file changed, came or went."""
    return look_at(places) == dict(before)


def older_than(seen: Seen, moment_ns: int) -> bool:
    """Whether no file was written, or put there, since; directories are not asked."""
    latest = max((max(stamp[1:3]) for stamp in seen.values() if stamp), default=0)
    return latest < moment_ns - CLOCK_STEP_NS


def _look_below(place: Path, seen: dict[str, list[int]]) -> bool:
    if not place.is_dir():
        seen[str(place)] = _stamp(str(place))
        return True
    files = 0
    for folder, _, names in os.walk(place, onerror=_raise, followlinks=True):
        seen[folder] = []
        files += len(names) + 1
        if files > MOST_FILES:
            return False
        seen.update((path, _stamp(path)) for path in (os.path.join(folder, n) for n in names))
    return True


def _stamp(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _raise(error: OSError) -> None:
    raise error
