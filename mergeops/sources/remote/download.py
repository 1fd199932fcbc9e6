"""Checkpoints from an artifact store, kept in a cache: complete or not there.

Only what a merge reads is fetched: safetensors, JSON, tokenizer files, chat templates, processors,
README.
optimizer.pt (twice the weights), pickles and code stay where they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from mergeops.checkpoint import SMALL_SUFFIXES, TokenizerFile, file_sha256
from mergeops.errors import SourceError
from mergeops.sources.remote.cache import MARKER, Downloads, describe
from mergeops.sources.remote.directory import Directory, DirectoryEntry, Progress, RemoteDirectory
from mergeops.sources.remote.transfer import Object, bring, check, objects

SUFFIXES = (".safetensors", *SMALL_SUFFIXES)
NAMES = ("README.md", *TokenizerFile)


def wanted(name: str) -> bool:
    """Whether a file is part of what a merge reads."""
    return name in NAMES or name.endswith(SUFFIXES)


def fetch(
    directory: Directory,
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    limit: int | None = None,
    is_wanted: Callable[[str], bool] = wanted,
) -> Path:
    """The directory on this machine: where it is, or downloaded, or found downloaded.

    Args:
        directory: a checkpoint's directory.
        cache_dir: downloads are kept below it, by URI, sizes and versions.
        progress: told how many bytes have arrived.
        limit: bytes that downloads may take on disk; None takes what the disk has.
        is_wanted: which files, by their names.

    Raises:
        SourceError: the store does not deliver, or delivers other bytes than it lists, or there is
            no room.
    """
    if directory.local is not None:
        return directory.local
    assert isinstance(directory, RemoteDirectory)
    entries = [e for e in directory.entries() if not e.is_dir and is_wanted(e.name)]
    entries = [entry for entry in entries if entry.name != MARKER]
    versions = objects(directory, [entry.name for entry in entries])
    listing = {
        entry.name: [entry.size, *([versions[entry.name].etag] if versions else [])]
        for entry in entries
    }
    about = describe(directory.shown, listing)
    key = hashlib.sha256(about.encode()).hexdigest()[:24]
    size = sum(entry.size for entry in entries)
    try:
        cache = Downloads(cache_dir, limit)
        while (folder := cache.find(key)) is None:
            with cache.filling(key) as parts:
                if not cache.is_complete(key):
                    arrived = sum(file.stat().st_size for file in parts.iterdir() if file.is_file())
                    cache.make_room(key, max(0, size - arrived), directory.shown)
                    files = _download(directory, entries, versions, parts, progress)
                    cache.add(key, files, about)
    except OSError as error:
        raise SourceError(
            f"{directory.shown} cannot be kept in {cache_dir}: {error.strerror or error}"
        ) from error
    return folder


def _download(
    directory: RemoteDirectory,
    entries: list[DirectoryEntry],
    versions: dict[str, Object],
    parts: Path,
    progress: Progress | None,
) -> dict[str, tuple[Path, str]]:
    """Bring the files that are not there yet: name -> (where it is, its sha256)."""
    total, done = sum(entry.size for entry in entries), 0
    files = {}
    for entry in entries:
        target = parts / entry.name

        def tick(here: int, before: int = done) -> None:
            if progress is not None:
                progress(directory.shown, before + here, total)

        if not target.is_file():
            version = versions.get(entry.name)
            bring(directory, entry.name, target, tick, version, size=entry.size)
            size = target.stat().st_size
            if entry.size and size != entry.size:
                target.unlink()
                raise SourceError(
                    f"{directory.shown}/{entry.name} arrived with {size} bytes, the store lists "
                    f"{entry.size}; run the command again"
                )
            check(directory, entry.name, target, version)
        files[entry.name] = target, file_sha256(target)
        tick(entry.size)
        done += entry.size
    return files
