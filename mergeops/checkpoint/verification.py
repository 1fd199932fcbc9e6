"""Rehashing a merge, and naming what differs: files, and inside a file the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from mergeops.checkpoint.digest import hash_files
from mergeops.checkpoint.header import StoredTensor, read_header
from mergeops.checkpoint.manifest import MANIFEST, read_manifest
from mergeops.errors import SourceError
from mergeops.progress import Tick

NAMED = 5
"""Tensors that are named for one file; of more, only how many there are."""
_READ_BYTES = 1 << 22
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin")
_OURS = (MANIFEST, "mergeops-download.json")
"""What mergeops writes beside the files of a merge."""


def verify_checkpoint(directory: Path, progress: Tick | None = None) -> list[str]:
    """Rehash a merge, several files at a time, and name every file that differs, is missing or is
    no part of it.

    Returns:
        One line a problem; empty where all is well.

    Raises:
        SourceError: there is no such directory.
    """
    if not directory.is_dir():
        raise SourceError(f"{directory} is not a directory; name that of a merge")
    try:
        manifest = read_manifest(directory)
    except SourceError as error:
        return [str(error)]
    if manifest is None:
        return [
            f"{MANIFEST} is missing: the merge did not finish, or {directory} is no mergeops merge"
        ]
    problems, whole = [], []
    for name, entry in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["size"]:
            problems.append(f"{name} has {path.stat().st_size} bytes, not {entry['size']}")
        else:
            whole.append(path)
    outcomes = hash_files(whole, progress)
    for path, outcome in outcomes.items():
        name = path.relative_to(directory).as_posix()
        entry = manifest["files"][name]
        if isinstance(outcome, SourceError):
            problems.append(str(outcome))
        elif outcome != entry["sha256"]:
            where = _where(path, entry.get("tensors") or {})
            problems.append(f"{name} has other content than when it was merged{where}")
    return problems + _extra(directory, manifest)


def _extra(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    problems = []
    for path in sorted(directory.iterdir()):
        name = path.name
        if name in manifest["files"] or name in _OURS or name.startswith(".") or path.is_dir():
            continue
        loaded = ", but would be loaded with it" if name.endswith(_WEIGHTS) else ""
        problems.append(f"{name} is no part of the merge{loaded}")
    return problems


def _where(path: Path, expected: Mapping[str, str]) -> str:
    """Which tensors of a file differ, as the end of a sentence."""
    if not expected:
        return ""
    try:
        stored = read_header(path)
        differing = [
            name
            for name, checksum in expected.items()
            if name not in stored or _xxh3(path, stored[name]) != checksum
        ]
    except (SourceError, OSError) as error:
        return f": {error}"
    if not differing:
        return ": its header differs, its tensors do not"
    more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    return f": {', '.join(differing[:NAMED])}{more}, {len(differing)} of {len(expected)} tensors"


def _xxh3(path: Path, tensor: StoredTensor) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        file.seek(tensor.start)
        left = tensor.stop - tensor.start
        while left and (data := file.read(min(_READ_BYTES, left))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()
