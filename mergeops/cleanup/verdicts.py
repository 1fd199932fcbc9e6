"""What is said of each thing in the work directory, by its name, its age and what needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mergeops.activations import FOLDER as ACTIVATIONS
from mergeops.checkpoint import locked, read_manifest
from mergeops.cleanup.needed import MergeUse
from mergeops.engine import DOOMED, LOCK, PACE
from mergeops.errors import SourceError
from mergeops.tracking import FOLDER, NOTES

Verdict = tuple[str, bool, str]
"""Kind, whether it is garbage, and why."""
YOUNG = "written lately; its command goes on from here"
CONTROLS = "controls"
LISTED_INSIDE = (ACTIVATIONS, CONTROLS)
"""Folders whose directories are each an item."""
WHOLE: Mapping[str, Verdict] = {
    "scores": ("scores", False, "scores found again instead of computed; small"),
    "cache": ("cache", False, "downloads and digests"),
    NOTES: ("notes", False, "what lets a finished run say so at once; small"),
    FOLDER: ("pending", False, "trials that wait for mergeops sync"),
    PACE: ("notes", False, "how fast this machine has been; small"),
    "studies": ("notes", False, "what lets a search go on; small"),
    "service": ("service", False, "queue, logs and state of mergeops serve"),
}
"""Name of a file or folder -> what is said of all of it."""
UNKNOWN: Verdict = ("other", False, "not made by mergeops")


def by_age(what: str, kind: str, older_than_s: float, age_s: float) -> Verdict:
    """Of what is made again where it is needed: it goes when it is old."""
    if age_s < older_than_s:
        return kind, False, f"{what}; written lately"
    return kind, True, f"{what}; made again where it is needed"


def by_writer(path: Path, interrupted: str, older_than_s: float, age_s: float) -> Verdict:
    """Of a working directory: it goes when it is old and no process writes it.

    Args:
        path: the directory.
        interrupted: why it goes then.
        older_than_s: what was written since is kept.
        age_s: of the directory.
    """
    if is_locked(path):
        return "partial", False, "a running process writes it"
    if age_s < older_than_s:
        return "partial", False, YOUNG
    return "partial", True, interrupted


def judged_merge(
    path: Path,
    digest: str,
    known: Mapping[str, MergeUse],
    waiting: Mapping[Path, str],
    older_than_s: float,
    age_s: float,
) -> Verdict:
    """Whether a directory among the merges is needed.

    Args:
        path: the directory.
        digest: of its plan; empty where it has none.
        known: what MLflow says of each plan.
        waiting: directory -> the trial that waits for sync.
        older_than_s: what was written since is kept.
        age_s: of the directory.
    """
    if path.is_symlink() or not path.is_dir():
        return "other", False, "not made by mergeops"
    if path.name.startswith(".") and path.name.endswith(DOOMED):
        return "partial", True, "its deletion was interrupted"
    if path.name.startswith(".") and path.name.endswith((".partial", ".merging")):
        why = "an interrupted merge that nobody went on with"
        return by_writer(path, why, older_than_s, age_s)
    if not digest:
        return "other", False, "not made by mergeops: it holds no manifest, or a damaged one"
    if path.resolve() in waiting:
        return "merge", False, f"{waiting[path.resolve()]} waits for mergeops sync"
    reference = known.get(digest)
    if reference is None and _is_applied_adapter(path):
        return by_age("an adapter, applied to its base to be scored", "merge", older_than_s, age_s)
    if reference is None:
        return "merge", False, "this server knows no run of it; another one may"
    if reference.needed:
        return "merge", False, reference.needed
    if age_s < older_than_s:
        return "merge", False, f"written lately; {reference.unneeded}"
    return "merge", True, reference.unneeded


def _is_applied_adapter(merge: Path) -> bool:
    """Whether a merge is an adapter on its base and no more."""
    try:
        manifest = read_manifest(merge) or {}
    except SourceError:
        return False
    method, sources = manifest.get("method"), manifest.get("sources")
    if not isinstance(method, Mapping) or not isinstance(sources, list) or len(sources) != 1:
        return False
    is_adapter = isinstance(sources[0], Mapping) and sources[0].get("is_adapter") is True
    return method.get("name") == "linear" and manifest.get("base") is None and is_adapter


def is_locked(partial: Path) -> bool:
    """Whether a running process writes a working directory."""
    try:
        with partial_lock(partial), locked(partial, wait=False, is_directory=True):
            return False
    except BlockingIOError:
        return True


@contextmanager
def partial_lock(partial: Path) -> Iterator[None]:
    """Hold the lock that a merge holds on its working directory.

    Raises:
        BlockingIOError: a process has it.
    """
    if (partial / LOCK).exists():
        with locked(partial / LOCK, wait=False):
            yield
    else:
        yield
