"""Digests of weights: equal digests mean equal weights, wherever the files are."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mergeops.checkpoint.durable import locked, replace_with
from mergeops.checkpoint.header import check_regular
from mergeops.checkpoint.layout import (
    ADAPTER,
    ADAPTER_CONFIG,
    FileStamp,
    read_json,
    stamp,
    weight_files,
)
from mergeops.errors import SourceError
from mergeops.progress import Tick

CACHE_FILE = "sha256.json"
_READ_BYTES = 1 << 22
_AHEAD_BYTES = 1 << 24
_LOOKS = 16
_LOOK_BYTES = 1 << 12


def weights_sha256(
    path: Path, *, cache_dir: Path | None = None, progress: Tick | None = None
) -> str:
    """Digest of a full checkpoint: of the sorted (file name, sha256) of its weight files.

    Args:
        path: the checkpoint's directory.
        cache_dir: where digests of files are remembered, by path and stamp.
        progress: told how far the hashing is.

    Raises:
        SourceError: the checkpoint has no weights, cannot be read, or changes meanwhile.
    """
    return _digest(weight_files(path), cache_dir, progress)


def adapter_sha256(
    path: Path,
    base_sha256: str,
    *,
    cache_dir: Path | None = None,
    progress: Tick | None = None,
) -> str:
    """Digest of a LoRA adapter: of its weights, what its config says and its base's digest.

    Raises:
        SourceError: a file of the adapter is missing or cannot be read.
    """
    config = read_json(path / ADAPTER_CONFIG)
    # Where the base was on the machine that trained it does not change what the adapter does.
    for key in ("base_model_name_or_path", "revision", "inference_mode"):
        config.pop(key, None)
    weights = _digest([path / ADAPTER], cache_dir, progress)
    text = "\n".join([weights, json.dumps(config, sort_keys=True), base_sha256])
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Digest of one file, read in pieces.

    Args:
        path: the file.
        progress: called with the number of bytes just read.

    Raises:
        SourceError: it cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    try:
        check_regular(path)
        with open(path, "rb", buffering=0) as file:
            position = 0
            _fetch(file.fileno(), 0)
            while n := file.readinto(buffer):
                # The disk reads on while this is hashed.
                position += n
                _fetch(file.fileno(), position)
                digest.update(buffer[:n])
                if progress is not None:
                    progress(n)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def combined_sha256(files: Mapping[str, str]) -> str:
    """Digest of the sorted (file name, sha256) of weight files."""
    lines = [f"{name} {sha256}" for name, sha256 in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _fetch(file: int, position: int) -> None:
    if position % _AHEAD_BYTES == 0:
        os.posix_fadvise(file, position, 2 * _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


def hash_files(
    files: Sequence[Path], progress: Tick | None = None
) -> dict[Path, str | SourceError]:
    """Digest of each file, or why it cannot be read; one for each processor at a time."""
    total, done = sum(file.stat().st_size for file in files), 0
    lock = threading.Lock()

    def advance(n: int) -> None:
        nonlocal done
        with lock:
            done += n
            if progress is not None:
                progress(done, total)

    def hash_one(file: Path) -> str | SourceError:
        try:
            return file_sha256(file, advance)
        except SourceError as error:
            return error

    threads = max(1, min(len(files), len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(threads, thread_name_prefix="hash") as pool:
        # The largest first, so that none is left for the end alone.
        by_size = sorted(files, key=lambda file: -file.stat().st_size)
        outcomes = dict(zip(by_size, pool.map(hash_one, by_size), strict=True))
    return {file: outcomes[file] for file in files}


def files_sha256(
    files: Sequence[Path], *, cache_dir: Path | None = None, progress: Tick | None = None
) -> dict[Path, str]:
    """Digests of files, remembered as in ``weights_sha256``.

    Raises:
        SourceError: a file cannot be read, or changes meanwhile.
    """
    stamps = {file: stamp(file) for file in files}
    keys = {file: _key(file, seen) for file, seen in stamps.items()}
    total = sum(s.size for s in stamps.values())
    cached = _read_cache(cache_dir) if cache_dir else {}
    digests = {key: cached[key] for key in keys.values() if key in cached}
    unknown = [file for file, key in keys.items() if key not in digests]
    before = total - sum(stamps[file].size for file in unknown)
    if progress is not None:
        progress(before, total)
    tick = None if progress is None else lambda n, _: progress(before + n, total)
    for file, outcome in hash_files(unknown, tick).items():
        if isinstance(outcome, SourceError):
            raise outcome
        if stamp(file) != stamps[file]:
            raise SourceError(
                f"{file} changed while it was hashed; run the command again when nobody writes it"
            )
        digests[keys[file]] = outcome
    if cache_dir is not None and not digests.keys() <= cached.keys():
        _extend_cache(cache_dir, digests)
    return {file: digests[key] for file, key in keys.items()}


def known_sha256(files: Sequence[Path], cache_dir: Path) -> dict[Path, str]:
    """Those of the files' digests that were computed or told before; nothing is read for them.

    Raises:
        SourceError: a file is gone.
    """
    cached = _read_cache(cache_dir)
    keys = {file: _key(file, stamp(file)) for file in files}
    return {file: cached[key] for file, key in keys.items() if key in cached}


def look_alike(first: Path, second: Path) -> bool:
    """Whether two files may hold the same bytes: they have one size, and agree in some places.

    Raises:
        SourceError: one cannot be read.
    """
    try:
        size = first.stat().st_size
        if size != second.stat().st_size:
            return False
        with open(first, "rb", buffering=0) as one, open(second, "rb", buffering=0) as other:
            # From the end: what is at the begin of two fine-tunes is the same header.
            for place in range(_LOOKS, 0, -1):
                at = max(size * place // _LOOKS - _LOOK_BYTES, 0)
                pieces = [os.pread(file.fileno(), _LOOK_BYTES, at) for file in (one, other)]
                if pieces[0] != pieces[1]:
                    return False
    except OSError as error:
        raise SourceError(
            f"{error.filename or first} cannot be read: {error.strerror or error}"
        ) from error
    return True


def remember(
    cache_dir: Path, known: Mapping[Path, str], seen: Mapping[Path, FileStamp] | None = None
) -> None:
    """Keep digests of files that were made elsewhere.

    Args:
        cache_dir: where they are kept.
        known: file -> sha256.
        seen: what each file looked like when it was hashed; None takes what it looks like now.
    """
    stamps = seen or {file: stamp(file) for file in known}
    _extend_cache(cache_dir, {_key(file, stamps[file]): sha256 for file, sha256 in known.items()})


def _digest(files: Sequence[Path], cache_dir: Path | None, progress: Tick | None) -> str:
    digests = files_sha256(files, cache_dir=cache_dir, progress=progress)
    return combined_sha256({file.name: sha256 for file, sha256 in digests.items()})


def _key(file: Path, seen: FileStamp) -> str:
    stamped = f"{seen.size}|{seen.mtime_ns}|{seen.ctime_ns}|{seen.inode}"
    return f"{os.path.realpath(file)}|{stamped}"


def _read_cache(cache_dir: Path) -> dict[str, str]:
    try:
        content = json.loads((cache_dir / CACHE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _extend_cache(cache_dir: Path, digests: dict[str, str]) -> None:
    """Remember digests; where nothing can be written, they are computed again next time."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with (
            locked(cache_dir / f"{CACHE_FILE}.lock"),
            replace_with(cache_dir / CACHE_FILE, sync=False) as new_file,
        ):
            content = _read_cache(cache_dir) | digests
            new_file.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
    except OSError as error:
        logging.getLogger(__name__).info(
            "digests are not kept in %s: %s", cache_dir, error.strerror or error
        )
