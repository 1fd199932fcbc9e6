"""Checkpoints from an artifact store, kept in a cache: complete or not there.

Only what a merge reads is fetched: safetensors, JSON, tokenizer files, chat templates, README.
optimizer.pt (twice the weights), pickles and code stay where they are.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from mergeops.errors import SourceError
from mergeops.sources.cache import MARKER, Downloads, describe
from mergeops.sources.place import Entry, Place, Progress, RemotePlace
from mergeops.sources.transfer import Object, bring, check, objects

SUFFIXES = (".safetensors", ".json", ".jinja")
NAMES = (
    "README.md",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tiktoken.model",
    "tokenizer.model",
    "vocab.txt",
)


def wanted(name: str) -> bool:
    """Whether a file is part of what a merge reads."""
    return name in NAMES or name.endswith(SUFFIXES)


def fetch(
    place: Place,
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    limit: int | None = None,
) -> Path:
    """The directory on this machine: where it is, or downloaded, or found downloaded.

    Args:
        place: a checkpoint's directory.
        cache_dir: downloads are kept below it, by URI, sizes and versions.
        progress: told how many bytes have arrived.
        limit: bytes that downloads may take on disk; None takes what the disk has.

    Raises:
        SourceError: the store does not deliver, or delivers other bytes than it lists, or there is
            no room.
    """
    if place.local is not None:
        return place.local
    assert isinstance(place, RemotePlace)
    entries = [e for e in place.entries() if not e.is_dir and wanted(e.name) and e.name != MARKER]
    versions = objects(place, [entry.name for entry in entries])
    listing = {
        entry.name: [entry.size, *([versions[entry.name].etag] if versions else [])]
        for entry in entries
    }
    about = describe(place.shown, listing)
    key = hashlib.sha256(about.encode()).hexdigest()[:24]
    try:
        cache = Downloads(cache_dir, limit)
        while (folder := cache.find(key)) is None:
            with cache.filling(key) as parts:
                if not cache.is_complete(key):
                    _download(place, entries, versions, cache, key, about, parts, progress)
    except OSError as error:
        raise SourceError(
            f"{place.shown} cannot be kept in {cache_dir}: {error.strerror or error}"
        ) from error
    return folder


def _download(
    place: RemotePlace,
    entries: list[Entry],
    versions: dict[str, Object],
    cache: Downloads,
    key: str,
    about: str,
    parts: Path,
    progress: Progress | None,
) -> None:
    from mergeops.checkpoint.digest import file_sha256

    total, done = sum(entry.size for entry in entries), 0
    there = sum(file.stat().st_size for file in parts.iterdir() if file.is_file())
    cache.make_room(key, max(0, total - there), place.shown)
    files = {}
    for entry in entries:
        target = parts / entry.name
        if not target.is_file():

            def tick(here: int, before: int = done) -> None:
                if progress is not None:
                    progress(place.shown, before + here, total)

            version = versions.get(entry.name)
            bring(place, entry.name, target, tick, version)
            size = target.stat().st_size
            if entry.size and size != entry.size:
                target.unlink()
                raise SourceError(
                    f"{place.shown}/{entry.name} arrived with {size} bytes, the store lists "
                    f"{entry.size}; run the command again"
                )
            check(place, entry.name, target, version)
        files[entry.name] = target, file_sha256(target)
        done += entry.size
        if progress is not None:
            progress(place.shown, done, total)
    cache.add(key, files, about)
