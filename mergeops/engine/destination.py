"""The directory that a merge is to become: what may be there before, and whether there is room."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeops.checkpoint import MANIFEST, lacking, read_manifest
from mergeops.errors import MergeError
from mergeops.planning import Plan


def check_output(out: Path) -> Mapping[str, Any] | None:
    """Refuse a directory that no merge can be written to, whatever its plan.

    Returns:
        The manifest of the merge that is there, which may be another one; None where there is none.

    Raises:
        MergeError: it is a file or a mount point, or holds something else.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise MergeError(f"{out} is a file; the output must be a new or empty directory")
    manifest = read_manifest(out)
    if manifest is None and os.path.ismount(os.path.realpath(out)):
        raise _mount_error(out)
    if manifest is None and any(out.iterdir()):
        raise MergeError(
            f"{out} is not empty and holds no {MANIFEST}; choose a new directory, or empty it"
        )
    return manifest


def is_done(plan: Plan, out: Path) -> bool:
    """Whether this very merge is there.

    Raises:
        MergeError: another one is, or this one damaged, or as ``check_output``.
    """
    manifest = check_output(out)
    if manifest is None:
        return False
    if manifest["plan_digest"] != plan.digest:
        raise MergeError(
            f"{out} holds another merge (plan {manifest['plan_digest'][:12]}, this is "
            f"{plan.digest[:12]}); choose a new directory, or remove it"
        )
    for name, entry in manifest["files"].items():
        if not (out / name).is_file() or (out / name).stat().st_size != entry["size"]:
            raise MergeError(f"{out} is damaged: {name} is missing or cut; remove it and run again")
    return True


def remove_empty(out: Path) -> None:
    """Make room for the rename: what cannot be removed now could not be replaced then.

    Raises:
        MergeError: it is a mount point, or may not be removed.
    """
    try:
        out.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):
            # Or another process has just finished it; what is wrong with the name shows next.
            return
        if error.errno == errno.EBUSY:
            raise _mount_error(out) from error
        verb = "replaced by the merge" if os.path.lexists(out) else "made"
        raise MergeError(
            f"{out} cannot be {verb}: {error.strerror}; choose a new directory"
        ) from error


def check_space(plan: Plan, out: Path, present: int = 0) -> None:
    """Refuse a merge that the disk has no room for.

    Of an earlier try, ``present`` bytes are there already.

    Raises:
        MergeError: says how much is needed and how much is free.
    """
    # What is there may be another file system's; the work is done beside it.
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free + present
    if free < plan.bytes_to_write:
        raise MergeError(
            f"{out} needs {lacking(plan.bytes_to_write, free)} are free there; free some space, or "
            "write it elsewhere"
        )


def _mount_error(out: Path) -> MergeError:
    return MergeError(
        f"{out} is a mount point, whose name no finished merge can take; choose a directory inside "
        f"it, e.g. {out / 'merge'}"
    )
