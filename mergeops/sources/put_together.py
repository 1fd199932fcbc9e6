"""What a sharded training left, on this machine: fetched from a store; an adapter's tensors, which
are few, as the directory that PEFT would have written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from mergeops.checkpoint import ADAPTER_CONFIG, locked, stamp
from mergeops.errors import MergeError, SourceError
from mergeops.recover import adapter_settings, is_piece, leftover, recover
from mergeops.sources.completed import completed
from mergeops.sources.contents import Location, examine
from mergeops.sources.remote.directory import LocalDirectory, Progress
from mergeops.sources.remote.download import fetch, wanted


def put_together(
    location: Location, cache_dir: Path, progress: Progress | None = None, limit: int | None = None
) -> tuple[Location, Path]:
    """What a sharded training left, on this machine, and what it is: an adapter, or a full model,
    which stays in pieces.

    Args:
        location: where it was found; its contents are pieces.
        cache_dir: downloads and adapters are kept below it.
        progress: told how many bytes have arrived.
        limit: as ``fetch`` takes it.

    Raises:
        SourceError: a store does not deliver, or what it delivers is not whole.
    """
    path = _fetched(location, cache_dir, progress, limit)
    contents = examine(LocalDirectory(path))
    if contents.sharded == "lora":
        path = _adapter(path, cache_dir)
        contents = examine(LocalDirectory(path))
    if contents.usable is None:
        raise SourceError(f"{location.directory.shown}: {contents.problem}")
    return dataclasses.replace(location, contents=contents), path


def _fetched(
    location: Location, cache_dir: Path, progress: Progress | None, limit: int | None
) -> Path:
    """The pieces where they are, or downloaded with the small files beside them."""
    directory, pieces = location.directory, location.contents.pieces
    if directory.local is not None:
        return directory.local
    assert pieces is not None

    def is_wanted(name: str) -> bool:
        return is_piece(name) or wanted(name)

    path = fetch(pieces.place, cache_dir, progress, limit=limit, is_wanted=is_wanted)
    if pieces.place.shown == directory.shown:
        return path
    return completed(path, [fetch(directory, cache_dir, progress, limit=limit)], cache_dir)


def _adapter(path: Path, cache_dir: Path) -> Path:
    """The directory of an adapter, made once of its pieces while they and its settings are the
    same."""
    found = leftover(path)
    if found is None or found.shards is None:
        raise SourceError(f"{path}: the pieces of an adapter that were here are gone")
    settings = adapter_settings(path, found) / ADAPTER_CONFIG
    looks = {str(found.path / name): seen for name, seen in found.shards.stamps.items()}
    looks[str(settings)] = stamp(settings)
    plain = {name: dataclasses.astuple(seen) for name, seen in sorted(looks.items())}
    name = hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:24]
    folder = cache_dir / "put-together" / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{name}.lock")):
            recover(path, folder)
    except OSError as error:
        raise SourceError(
            f"{path}: its pieces cannot be put together in {folder}: {error.strerror or error}"
        ) from error
    except MergeError as error:
        raise SourceError(str(error)) from error
    return folder
