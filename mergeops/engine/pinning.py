"""From a plan that names its inputs by their files to one that names them by their bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from mergeops.checkpoint import FileStamp, HashAlong, combined_sha256, files_sha256, remember, stamp
from mergeops.errors import SourceError
from mergeops.planning import Plan, PlannedInput
from mergeops.progress import Tick


def hashes_of(plan: Plan) -> HashAlong | None:
    """What hashes the inputs that are not hashed yet while they are read; None without any.

    Raises:
        SourceError: a file cannot be opened.
    """
    stamps = unhashed_files(plan)
    unhashed = sum(not planned.sha256 for planned in plan.inputs)
    return HashAlong(stamps, unhashed) if unhashed else None


def pinned_by(plan: Plan, hashes: HashAlong, cache_dir: Path | None) -> Plan:
    """The plan by its inputs' digests, whose files are hashed to their ends.

    Args:
        plan: what was done.
        hashes: from ``hashes_of``, with every tensor read.
        cache_dir: where the digests of files are remembered, so that the next plan has them.

    Raises:
        SourceError: a file cannot be read, or changed meanwhile.
    """
    digests = hashes.finish()
    if cache_dir is not None:
        remember(cache_dir, digests, unhashed_files(plan))
    return pinned(plan, digests)


def hashed_now(plan: Plan, cache_dir: Path | None, progress: Tick | None) -> Plan:
    """The plan by its inputs' digests, whose files are read for it where they must be.

    Raises:
        SourceError: a file cannot be read, or changed.
    """
    stamps = unhashed_files(plan)
    digests = files_sha256(list(stamps), cache_dir=cache_dir, progress=progress)
    for file, seen in stamps.items():
        if stamp(file) != seen:
            raise SourceError(
                f"{file} changed after the merge was planned; run the command again when nobody "
                "writes it"
            )
    return pinned(plan, digests)


def unhashed_files(plan: Plan) -> dict[Path, FileStamp]:
    """The files of all inputs that are not hashed yet."""
    return {
        Path(planned.path) / name: seen
        for planned in plan.inputs
        if not planned.sha256
        for name, seen in planned.stamps.items()
    }


def pinned(plan: Plan, digests: Mapping[Path, str]) -> Plan:
    """The plan with the digests of its inputs' files."""

    def pin(planned: PlannedInput) -> PlannedInput:
        if planned.sha256:
            return planned
        files = {name: digests[Path(planned.path) / name] for name in planned.stamps}
        return dataclasses.replace(planned, sha256=combined_sha256(files))

    return dataclasses.replace(
        plan, base=plan.base and pin(plan.base), sources=tuple(map(pin, plan.sources))
    )
