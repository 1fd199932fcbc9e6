"""Moved storage: where the things are now whose old path or URI was logged."""

from __future__ import annotations

from collections.abc import Mapping


def moved(path: str, path_map: Mapping[str, str]) -> str:
    """The path or URI with its longest mapped prefix replaced.

    A prefix ends at a ``/``: ``/data`` moves ``/data/run`` and leaves ``/database`` alone.
    """
    scheme = "file://" if path.startswith("file:///") else ""
    plain = path.removeprefix(scheme)
    best = ""
    for old in path_map:
        prefix = old.removeprefix("file://").rstrip("/")
        fits = plain == prefix or plain.startswith(f"{prefix}/")
        if fits and len(prefix) >= len(best.removeprefix("file://").rstrip("/")) and old:
            best = old
    if not best:
        return path
    rest = plain[len(best.removeprefix("file://").rstrip("/")) :]
    return path_map[best].rstrip("/") + rest
