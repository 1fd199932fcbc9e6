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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.checkpoint.hold import alone
from mergeops.checkpoint.manifest import read_manifest
from mergeops.disk_usage import usage
from mergeops.errors import ConfigError, SourceError, TrackingError
from mergeops.tracking.lock import only_one
from mergeops.tracking.pending import FOLDER, pending_trials
from mergeops.tracking.references import Reference, references
from mergeops.working_directory import DOOMED, LOCK

if TYPE_CHECKING:
    from mergeops.tracking.connection import Tracking

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
AT_A_TIME = 32
"""Merges that are locked, judged again and deleted together: each takes a few open files."""
YOUNG = "written lately; its command goes on from here"


Verdict = tuple[str, bool, str]
"""Kind, whether it is garbage, and why."""


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
        ConfigError: a directory cannot be listed.
    """
    digests = {path: _plan_digest(path) for path in _listed(work_dir / "merges")}
    known = references(tracking, {digest for digest in digests.values() if digest})
    waiting = {
        kept.checkpoint.resolve(): kept.name
        for kept in pending_trials(work_dir)
        if kept.checkpoint is not None
    }
    items = []
    for path, digest in digests.items():
        experiments = known[digest].experiment_ids if digest in known else ()

        def judge(age_s: float, path: Path = path, digest: str = digest) -> Verdict:
            return _judge(path, digest, known, waiting, is_young=age_s < older_than_s)

        items += _items(path, judge, digest, experiments)
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
    results = {item.path: item for item in items}
    doomed = [item for item in items if item.is_garbage]
    for start in range(0, len(doomed), AT_A_TIME):
        for item in _delete(doomed[start : start + AT_A_TIME], work_dir, tracking, older_than_s):
            results[item.path] = item
    return list(results.values())


def _delete(
    items: Sequence[Item], work_dir: Path, tracking: Tracking, older_than_s: float
) -> list[Item]:
    """Lock some garbage, judge it again, and delete what is garbage still."""
    results = []
    with ExitStack() as locks:
        locked = []
        for item in items:
            try:
                _lock(item, tracking, locks)
                locked.append(item)
            except FileNotFoundError:
                results.append(_kept(item, "gone already"))
            except BlockingIOError:
                results.append(_kept(item, "in use: a running process reads or writes it"))
            except TrackingError as error:
                results.append(_kept(item, f"in use: {error}"))
            except OSError as error:
                results.append(_kept(item, f"cannot be locked: {error.strerror}"))
        # The user may have thought for an hour, and another process acted until it was locked.
        merges = any(item.kind == "merge" for item in locked)
        found_now = look(work_dir, tracking, older_than_s) if merges else []
        now = {item.path: item for item in found_now}
        for item in locked:
            if item.kind == "partial":
                found = _look_again(item, older_than_s)
            else:
                found = now.get(item.path) or _kept(item, "gone already")
            results.append(_remove(found) if found.is_garbage else found)
    return results


def _lock(item: Item, tracking: Tracking, locks: ExitStack) -> None:
    if item.kind == "partial":
        locks.enter_context(_partial_lock(item.path))
    for experiment_id in item.experiment_ids:
        identity = (tracking.uri, experiment_id, item.plan_digest)
        locks.enter_context(only_one(f"the merge {item.path.name}", *identity))
    locks.enter_context(alone(item.path))


def _look_again(partial: Item, older_than_s: float) -> Item:
    # Not by ``look``: to that, our own lock is another process.
    if partial.path.name.endswith(DOOMED):
        return partial
    try:
        is_young = usage(partial.path).age_s < older_than_s
    except OSError as error:
        return _kept(partial, f"cannot be read: {error.strerror}")
    return _kept(partial, YOUNG) if is_young else partial


def _remove(item: Item) -> Item:
    try:
        # Renamed first: what is half deleted must not look whole.
        doomed = item.path
        if not doomed.name.endswith(DOOMED):
            doomed = item.path.with_name(f".{item.path.name.lstrip('.')}{DOOMED}")
            os.rename(item.path, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        return _kept(item, f"cannot be deleted: {error.strerror}")
    return item


def _kept(item: Item, reason: str) -> Item:
    return dataclasses.replace(item, is_garbage=False, reason=reason)


def _judge(
    path: Path,
    digest: str,
    known: Mapping[str, Reference],
    waiting: Mapping[Path, str],
    *,
    is_young: bool,
) -> Verdict:
    if path.is_symlink() or not path.is_dir():
        return "other", False, "not made by mergeops"
    if path.name.startswith(".") and path.name.endswith(DOOMED):
        return "partial", True, "its deletion was interrupted"
    if path.name.startswith(".") and path.name.endswith(".partial"):
        if _is_locked(path):
            return "partial", False, "a running process writes it"
        if is_young:
            return "partial", False, YOUNG
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
    try:
        manifest = read_manifest(merge) or {}
    except SourceError:
        return []
    described = [manifest.get("base"), *manifest.get("sources", [])]
    return [str(one.get("sha256")) for one in described if isinstance(one, Mapping)]


def _others(work_dir: Path) -> Iterator[Item]:
    kept = {
        "scores": ("scores", "scores found again instead of computed; small"),
        "cache": ("cache", "downloads and digests"),
        FOLDER: ("pending", "trials that wait for mergeops sync"),
    }
    for path in _listed(work_dir):
        if path.name != "merges":
            kind, reason = kept.get(path.name, ("other", "not made by mergeops"))
            verdict = (kind, False, reason)
            yield from _items(path, _always(verdict))


def _always(verdict: Verdict) -> Callable[[float], Verdict]:
    return lambda _age_s: verdict


def _items(
    path: Path,
    judge: Callable[[float], Verdict],
    digest: str = "",
    experiment_ids: tuple[str, ...] = (),
) -> list[Item]:
    """The item at a path; none where it went away meanwhile."""
    place = path.absolute()
    try:
        facts = usage(path)
        verdict = judge(facts.age_s)
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = f"cannot be read: {error.strerror} ({error.filename})"
        return [Item(place, "other", 0, 0, 0.0, False, reason)]
    kind, garbage, reason = verdict
    sizes = (facts.nbytes, facts.freed, facts.age_s)
    return [Item(place, kind, *sizes, garbage, reason, digest, experiment_ids)]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from error


def _plan_digest(path: Path) -> str:
    if path.is_symlink() or not path.is_dir() or path.name.startswith("."):
        return ""
    try:
        manifest = read_manifest(path)
    except (SourceError, PermissionError):
        return ""
    return str(manifest["plan_digest"]) if manifest else ""


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
