"""A model's directory with the tokenizer and processor that MLflow keeps beside it, and with the
folders of its own that belong to it: modules of sentence-transformers, further chat templates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergeops.checkpoint import MODULES, MORE_TEMPLATES, locked
from mergeops.errors import SourceError
from mergeops.sources.contents import Location
from mergeops.sources.remote.cache import MARKER
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
    # A download is of one directory.
    entries = [] if location.directory.local is not None else location.directory.entries()
    folders = _folders(path)
    nested = {
        f"{entry.name}/{file.name}": file
        for entry in entries
        if entry.is_dir and entry.name in folders
        for file in fetch(
            location.directory.inside(entry.name),
            cache_dir,
            progress,
            limit=limit,
            is_wanted=lambda name: True,
        ).iterdir()
        if file.name != MARKER
    }
    return completed(path, beside, cache_dir, nested)


def _folders(path: Path) -> set[str]:
    """The folders inside a model's directory that belong to it; a broken list of modules is told of
    where it is read."""
    try:
        modules = json.loads((path / MODULES).read_text(encoding="utf-8"))
        return {MORE_TEMPLATES, *(str(module["path"]) for module in modules)}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {MORE_TEMPLATES}


def completed(
    path: Path,
    beside: Sequence[Path],
    cache_dir: Path,
    nested: Mapping[str, Path] | None = None,
) -> Path:
    """A directory of links to a model's files, and to those files beside it that it lacks.

    Args:
        path: the model's directory; its own files win.
        beside: directories with further files of the model.
        cache_dir: the links are kept below it.
        nested: FOLDER/FILE -> where it is, of folders that the directory lacks.

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
    if not lacking and not nested:
        return path
    lacking |= nested or {}
    places = [path, *beside, *(nested or {}).values()]
    named = json.dumps([str(place.resolve()) for place in places])
    folder = cache_dir / "completed" / hashlib.sha256(named.encode()).hexdigest()[:24]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            wanted = {name: file.resolve() for name, file in (lacking | files).items()}
            for link in [link for link in folder.rglob("*") if link.is_symlink()]:
                name = link.relative_to(folder).as_posix()
                if name not in wanted or link.readlink() != wanted[name]:
                    link.unlink()
            for name, file in wanted.items():
                (folder / name).parent.mkdir(exist_ok=True)
                if not (folder / name).is_symlink():
                    (folder / name).symlink_to(file)
    except OSError as error:
        raise SourceError(
            f"{path} lacks files that lie beside it, and links to them cannot be kept in "
            f"{cache_dir}: {error.strerror or error}"
        ) from error
    return folder
