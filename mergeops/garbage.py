"""What in the work directory is still needed, and by whom: versions, aliases, runs and processes.

A merge may go when MLflow knows its run and nothing there needs it any more. Whatever is not
understood is kept: a merge that this server knows nothing of may be another server's champion.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.checkpoint.manifest import read_manifest
from mergeops.errors import ConfigError, SourceError, TrackingError
from mergeops.execute import DOOMED, LOCK
from mergeops.tracking.lock import only_one
from mergeops.tracking.pending import FOLDER, pending_trials
from mergeops.tracking.references import Reference, references

if TYPE_CHECKING:
    from mergeops.tracking.connection import Tracking

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Item:
    """One thing in the work directory."""

    path: Path
    kind: str
    """merge, partial, pending, scores, cache or other."""
    nbytes: int
    """Bytes on the disk."""
    freed: int
    """Of these, the bytes that nothing else holds: MLflow may hold hard links to the files."""
    age_s: float
    """Seconds since anything in it was written."""
    is_garbage: bool
    reason: str
    plan_digest: str = ""
    experiment_ids: tuple[str, ...] = ()
    """Of the runs that made it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        raw = {**dataclasses.asdict(self), "path": str(self.path)}
        return {**raw, "experiment_ids": list(self.experiment_ids)}


def parse_age(text: str) -> float:
    """Seconds of ``7d``, ``12h``, ``30m`` or ``2w``.

    Raises:
        ConfigError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())
    if found is None:
        raise ConfigError(
            f"--older-than is {text!r}; write a number and m, h, d or w, e.g. 12h or 7d"
        )
    return float(found[1]) * UNITS[found[2]]


def look(work_dir: Path, tracking: Tracking, older_than_s: float) -> list[Item]:
    """Everything in the work directory, and whether it is garbage.

    Args:
        work_dir: ``output.dir`` of the recipes.
        tracking: the server whose registry and runs say what is needed.
        older_than_s: what was written since is kept, in seconds.

    Raises:
        TrackingError: the server cannot be asked, or a kept trial is damaged: nothing is known.
    """
    folders = sorted((work_dir / "merges").iterdir()) if (work_dir / "merges").is_dir() else []
    digests = {path: _plan_digest(path) for path in folders}
    known = references(tracking, {digest for digest in digests.values() if digest})
    waiting = {
        kept.checkpoint.resolve(): kept.name
        for kept in pending_trials(work_dir)
        if kept.checkpoint is not None
    }
    items = []
    for path, digest in digests.items():
        kind, garbage, reason = _judge(path, digest, known, waiting, older_than_s)
        item = _item(path, kind, garbage, reason, digest)
        if digest in known:
            item = dataclasses.replace(item, experiment_ids=known[digest].experiment_ids)
        items.append(item)
    items += _others(work_dir)
    return _parents_of_kept(items, known)


def collect(
    items: Sequence[Item], work_dir: Path, tracking: Tracking, older_than_s: float
) -> list[Item]:
    """Delete the garbage among ``items``, each unless it is needed by now, and locked meanwhile.

    Returns:
        The items as they are now; ``is_garbage`` means deleted.

    Raises:
        TrackingError: the server cannot be asked.
    """
    # The user may have thought for an hour before saying yes.
    now = {item.path: item for item in look(work_dir, tracking, older_than_s)}
    results = []
    for item in items:
        found = now.get(item.path)
        if not item.is_garbage:
            results.append(item)
        elif found is None:
            results.append(dataclasses.replace(item, is_garbage=False, reason="gone already"))
        else:
            results.append(_delete(found, tracking) if found.is_garbage else found)
    return results


def _delete(item: Item, tracking: Tracking) -> Item:
    try:
        with ExitStack() as locks:
            if item.kind == "partial":
                locks.enter_context(_partial_lock(item.path))
            for experiment_id in item.experiment_ids:
                what = f"the merge {item.path.name}"
                identity = (tracking.uri, experiment_id, item.plan_digest)
                locks.enter_context(only_one(what, *identity))
            # Renamed first: what is half deleted must not look whole.
            doomed = item.path
            if not doomed.name.endswith(DOOMED):
                doomed = item.path.with_name(f".{item.path.name.lstrip('.')}{DOOMED}")
                os.rename(item.path, doomed)
            shutil.rmtree(doomed)
    except (TrackingError, BlockingIOError) as error:
        return dataclasses.replace(item, is_garbage=False, reason=f"in use: {error}")
    except OSError as error:
        reason = f"cannot be deleted: {error.strerror}"
        return dataclasses.replace(item, is_garbage=False, reason=reason)
    return item


def _judge(
    path: Path,
    digest: str,
    known: Mapping[str, Reference],
    waiting: Mapping[Path, str],
    older_than_s: float,
) -> tuple[str, bool, str]:
    """Kind, whether it is garbage, and why."""
    if path.is_symlink() or not path.is_dir():
        return "other", False, "not made by mergeops"
    if path.name.startswith(".") and path.name.endswith(DOOMED):
        return "partial", True, "its deletion was interrupted"
    is_young = _age(path) < older_than_s
    if path.name.startswith(".") and path.name.endswith(".partial"):
        if _is_locked(path):
            return "partial", False, "a running process writes it"
        if is_young:
            return "partial", False, "written lately; its command goes on from here"
        return "partial", True, "an interrupted merge that nobody went on with"
    if not digest:
        return "other", False, "not made by mergeops: it holds no manifest, or a damaged one"
    if path.resolve() in waiting:
        return "merge", False, f"{waiting[path.resolve()]} waits for mergeops sync"
    reference = known.get(digest)
    if reference is None:
        return "merge", False, "this server knows no run of it; another one may"
    if reference.needed:
        return "merge", False, reference.needed
    if is_young:
        return "merge", False, f"written lately; {reference.unneeded}"
    return "merge", True, reference.unneeded


def _parents_of_kept(items: list[Item], known: Mapping[str, Reference]) -> list[Item]:
    """Keep merges that a kept merge was made from, and those in turn."""
    by_weights = {
        known[item.plan_digest].weights_sha256: item
        for item in items
        if item.kind == "merge" and item.plan_digest in known
    }
    verdicts = {item.path: item for item in items}
    todo = [item for item in items if item.kind == "merge" and not item.is_garbage]
    while todo:
        child = todo.pop()
        for sha256 in _parents(child.path):
            parent = by_weights.get(sha256)
            if parent is not None and verdicts[parent.path].is_garbage:
                kept = dataclasses.replace(
                    parent, is_garbage=False, reason=f"a parent of {child.path.name}, which is kept"
                )
                verdicts[parent.path] = kept
                todo.append(kept)
    return list(verdicts.values())


def _parents(merge: Path) -> list[str]:
    manifest = read_manifest(merge) or {}
    described = [manifest.get("base"), *manifest.get("sources", [])]
    return [str(one.get("sha256")) for one in described if isinstance(one, Mapping)]


def _others(work_dir: Path) -> Iterator[Item]:
    kept = {
        "scores": ("scores", "scores found again instead of computed; small"),
        "cache": ("cache", "downloads and digests"),
        FOLDER: ("pending", "trials that wait for mergeops sync"),
    }
    for path in sorted(work_dir.iterdir()) if work_dir.is_dir() else ():
        if path.name != "merges":
            kind, reason = kept.get(path.name, ("other", "not made by mergeops"))
            yield _item(path, kind, False, reason, "")


def _item(path: Path, kind: str, garbage: bool, reason: str, digest: str) -> Item:
    nbytes, freed = _size(path)
    return Item(path.absolute(), kind, nbytes, freed, _age(path), garbage, reason, digest)


def _plan_digest(path: Path) -> str:
    if path.is_symlink() or not path.is_dir() or path.name.startswith("."):
        return ""
    try:
        manifest = read_manifest(path)
    except SourceError:
        return ""
    return str(manifest["plan_digest"]) if manifest else ""


def _files(path: Path) -> Iterator[os.stat_result]:
    yield path.lstat()
    if path.is_dir() and not path.is_symlink():
        for inside in path.rglob("*"):
            try:
                yield inside.lstat()
            except FileNotFoundError:
                continue


def _size(path: Path) -> tuple[int, int]:
    facts = [one for one in _files(path) if not stat.S_ISDIR(one.st_mode)]
    total = sum(one.st_blocks * 512 for one in facts)
    return total, sum(one.st_blocks * 512 for one in facts if one.st_nlink == 1)


def _age(path: Path) -> float:
    return max(0.0, time.time() - max(one.st_mtime for one in _files(path)))


def _is_locked(partial: Path) -> bool:
    try:
        with _partial_lock(partial):
            return False
    except BlockingIOError:
        return True


@contextmanager
def _partial_lock(partial: Path) -> Iterator[None]:
    """Hold the lock that a merge holds on its working directory.

    Raises:
        BlockingIOError: a process has it.
    """
    try:
        lock = os.open(partial / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)
