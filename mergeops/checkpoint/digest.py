"""Digests of weights: equal digests mean equal weights, wherever the files are."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mergeops.checkpoint.layout import ADAPTER, ADAPTER_CONFIG, read_json, weight_files
from mergeops.errors import SourceError

CACHE_FILE = "sha256.json"
_READ_BYTES = 1 << 22

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


def weights_sha256(
    path: Path, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> str:
    """Digest of a full checkpoint: of the sorted (file name, sha256) of its weight files.

    Args:
        path: the checkpoint's directory.
        cache_dir: where digests of files are remembered, by path, size, mtime and inode.
        progress: told how far the hashing is.

    Raises:
        SourceError: the checkpoint has no weights or cannot be read.
    """
    return _digest(weight_files(path), cache_dir, progress)


def adapter_sha256(
    path: Path,
    base_sha256: str,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
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
        with open(path, "rb", buffering=0) as file:
            while n := file.readinto(buffer):
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


def _digest(files: Sequence[Path], cache_dir: Path | None, progress: Progress | None) -> str:
    keys, total = {}, 0
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            raise SourceError(f"{file} cannot be read: {error.strerror or error}") from error
        keys[file] = (
            f"{os.path.realpath(file)}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
        )
        total += status.st_size
    known = _read_cache(cache_dir) if cache_dir else {}
    found, done = {}, 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    for file, key in keys.items():
        if key in known:
            found[key] = known[key]
            advance(os.stat(file).st_size)
        else:
            found[key] = file_sha256(file, advance)
    if cache_dir is not None and not found.keys() <= known.keys():
        _extend_cache(cache_dir, found)
    return combined_sha256({file.name: found[key] for file, key in keys.items()})


def _read_cache(cache_dir: Path) -> dict[str, str]:
    try:
        content = json.loads((cache_dir / CACHE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _extend_cache(cache_dir: Path, found: dict[str, str]) -> None:
    cache_dir.mkdir(parents=True, exist_ok=True)
    with open(cache_dir / f"{CACHE_FILE}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = _read_cache(cache_dir) | found
        temporary = cache_dir / f"{CACHE_FILE}.new"
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(temporary, cache_dir / CACHE_FILE)
