"""A model's directory with the tokenizer and processor that MLflow keeps beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mergeops.checkpoint import locked
from mergeops.errors import SourceError
from mergeops.sources.contents import Location
from mergeops.sources.remote.directory import Progress
from mergeops.sources.remote.download import fetch


def with_companions(
    path: Path,
    location: Location,
    cache_dir: Path,
    progress: Progress | None,
    *,
    limit: int | None = None,
) -> Path:
    """A fetched directory, with those files that MLflow keeps beside it and that it lacks.

    Args:
        path: the directory.
        location: where it was found.
        cache_dir: downloads and links are kept below it.
        progress: called with (what, bytes done, bytes in all).
        limit: of the cache, in bytes.

    Raises:
        SourceError: they cannot be fetched or linked.
    """
    own = {file.name for file in path.iterdir()}
    beside = [
        fetch(directory, cache_dir, progress, limit=limit)
        for directory in location.companions
        if not {entry.name for entry in directory.entries()} <= own
    ]
    return completed(path, beside, cache_dir)


def completed(path: Path, beside: Sequence[Path], cache_dir: Path) -> Path:
    """A directory of links to a model's files, and to those files beside it that it lacks.

    Args:
        path: the model's directory; its own files win.
        beside: directories with further files of the model.
        cache_dir: the links are kept below it.

    Returns:
        ``path`` itself where it lacks nothing.

    Raises:
        SourceError: the links cannot be made.
    """
    files = {file.name: file for file in sorted(path.iterdir())}
    lacking = {
        file.name: file
        for directory in beside
        if directory.is_dir()
        for file in sorted(directory.iterdir())
        if file.is_file() and file.name not in files
    }
    if not lacking:
        return path
    named = json.dumps([str(place.resolve()) for place in (path, *beside)])
    folder = cache_dir / "completed" / hashlib.sha256(named.encode()).hexdigest()[:24]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            wanted = {name: file.resolve() for name, file in (lacking | files).items()}
            for link in folder.iterdir():
                if link.name not in wanted or link.readlink() != wanted[link.name]:
                    link.unlink()
            for name, file in wanted.items():
                if not (folder / name).is_symlink():
                    (folder / name).symlink_to(file)
    except OSError as error:
        raise SourceError(
            f"{path} lacks files that lie beside it, and links to them cannot be kept in "
            f"{cache_dir}: {error.strerror or error}"
        ) from error
    return folder
