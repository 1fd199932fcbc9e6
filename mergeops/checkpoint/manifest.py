"""mergeops.json: what a merge is made of and the digest of each file. Its presence means complete.

It holds no times and no paths: the same plan gives the same manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.checkpoint.digest import file_sha256
from mergeops.checkpoint.durable import sync_directory, sync_file
from mergeops.errors import SourceError

MANIFEST = "mergeops.json"
FORMAT = 1


@dataclass(frozen=True)
class WrittenFile:
    """A finished file."""

    sha256: str
    size: int
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Tensor -> XXH3 of its bytes, for a file of tensors."""


def write_manifest(
    directory: Path,
    content: Mapping[str, Any],
    names: Iterable[str],
    known: Mapping[str, WrittenFile],
) -> None:
    """Write the manifest, last of all files, and bring it to the disk.

    Args:
        directory: where the other files are.
        content: plan digest, recipe, inputs, versions.
        names: the files that belong to the checkpoint; those that are not known yet are hashed
            and brought to the disk.
        known: digests of files that are on the disk.
    """
    described: dict[str, dict[str, Any]] = {}
    for name in sorted(names):
        file = known.get(name)
        if file is None:
            sync_file(directory / name)
            sync_directory((directory / name).parent)
            file = WrittenFile(file_sha256(directory / name), (directory / name).stat().st_size)
        described[name] = {"sha256": file.sha256, "size": file.size}
        if file.tensors:
            described[name]["tensors"] = dict(file.tensors)
    text = json.dumps({"format": FORMAT, **content, "files": described}, indent=2) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    sync_file(directory / MANIFEST)


def is_inside(name: str) -> bool:
    """Whether a manifest may name a file so: in its directory, or in a folder of that."""
    parts = name.split("/")
    return len(parts) <= 2 and not any(part in ("", ".", "..") or "\0" in part for part in parts)


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a complete checkpoint, or None where there is none.

    Raises:
        SourceError: it is damaged.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        if content["format"] != FORMAT:
            raise SourceError(
                f"{path} has format {content['format']}; this version of mergeops reads {FORMAT}"
            )
        for name, entry in content["files"].items():
            if not is_inside(name):
                raise ValueError(f"{name!r} is no name of a file in this directory")
            if type(entry["size"]) is not int or not isinstance(entry["sha256"], str):
                raise ValueError(f"{name!r} has no size or no digest")
            if not isinstance(entry.get("tensors", {}), dict):
                raise ValueError(f"the tensors of {name!r} are no object")
        if not isinstance(content["plan_digest"], str):
            raise ValueError("its plan_digest is no text")
    except KeyError as error:
        raise SourceError(f"{path} is damaged: it lacks {error}") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{path} is damaged: {error}") from error
    return dict(content)
