"""Weight files copied to a disk of this machine's own, once for all processes that read them.

A worker of a cluster sets ``STAGE_VARIABLE``; what it merges from shared storage, trial after
trial, is then read from the copy. A copy is named by what its file was: a file that changes gets
another.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from mergeops.checkpoint.durable import locked, replace_with
from mergeops.checkpoint.layout import FileStamp
from mergeops.errors import SourceError

STAGE_VARIABLE = "MERGEOPS_STAGE"
"""The environment variable that names the directory; without it nothing is copied."""


def staged(file: Path, stamp: FileStamp) -> Path:
    """Where a weight file is read from: its copy, made where there is none, or the file itself.

    Args:
        file: of a checkpoint.
        stamp: what it was planned with.

    Raises:
        SourceError: there is no room for the copy, or the file changes while it is copied.
        OSError: it cannot be read or written.
    """
    folder = os.environ.get(STAGE_VARIABLE)
    if not folder:
        return file
    stage = Path(folder)
    if file.absolute().is_relative_to(stage.absolute()):
        return file
    name = hashlib.sha256(f"{file.absolute()}\0{stamp}".encode()).hexdigest()[:32]
    copy = stage / f"{name}{file.suffix}"
    stage.mkdir(parents=True, exist_ok=True)
    with locked(stage / f".{name}.lock"):
        if not copy.exists():
            _copy(file, stamp, copy)
    return copy


def _copy(file: Path, stamp: FileStamp, copy: Path) -> None:
    free = shutil.disk_usage(copy.parent).free
    if free < stamp.size:
        raise SourceError(
            f"executor.stage is {copy.parent}, which has {free / 1e9:.2f} GB free, and "
            f"{file} takes {stamp.size / 1e9:.2f} GB; make room, or leave executor.stage out"
        )
    with replace_with(copy) as partial:
        shutil.copyfile(file, partial)
        if FileStamp.of(file.stat()) != stamp or partial.stat().st_size != stamp.size:
            raise SourceError(
                f"{file} changed after the merge was planned; run the command again when nobody "
                "writes it"
            )
