"""What in the work directory is still needed, and by whom: versions, aliases, runs and processes.

A merge may go when MLflow knows its run and nothing there needs it any more. Whatever is not
understood is kept: a merge that this server knows nothing of may be another server's champion.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mergeops.checkpoint import alone, read_manifest
from mergeops.cleanup.disk_usage import Usage, usage
from mergeops.cleanup.made_again import made_again
from mergeops.cleanup.needed import MergeUse, references
from mergeops.cleanup.verdicts import (
    LISTED_INSIDE,
    UNKNOWN,
    WHOLE,
    YOUNG,
    Verdict,
    judged_merge,
    partial_lock,
)
from mergeops.engine import DOOMED
from mergeops.errors import ConfigError, SourceError, TrackingError
from mergeops.store import Tracking, only_one
from mergeops.tracking import pending_trials

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
AT_A_TIME = 32
"""Merges that are locked, judged again and deleted together: each takes a few open files."""


@dataclass(frozen=True, kw_only=True)
class KeptItem:
    """One thing in the work directory."""

    path: Path
    kind: str
    """merge, partial, activations, noise, pending, scores, notes, cache, service or other."""
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
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())
    if match is None:
        raise ConfigError(
            f"--older-than is {text!r}; write a number and m, h, d or w, e.g. 12h or 7d"
        )
    return float(match[1]) * UNITS[match[2]]


def look(work_dir: Path, tracking: Tracking, older_than_s: float) -> list[KeptItem]:
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
        judge = partial(judged_merge, path, digest, known, waiting, older_than_s)
        items += _items(path, judge, digest, experiments)
    items += _others(work_dir)
    items = _parents_of_kept(items, known)
    kept = [item for item in items if item.kind == "merge" and not item.is_garbage]
    in_use = {sha256 for item in kept for sha256 in _parents(item.path)}
    again = [
        found
        for path, judge in made_again(work_dir, older_than_s, in_use)
        for found in _items(path, judge)
    ]
    return [_without(item, again) for item in items] + again


def collect(
    items: Sequence[KeptItem], work_dir: Path, tracking: Tracking, older_than_s: float
) -> list[KeptItem]:
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
    items: Sequence[KeptItem], work_dir: Path, tracking: Tracking, older_than_s: float
) -> list[KeptItem]:
    """Lock some garbage, judge it again, and delete what is garbage still."""
    results = []
    with ExitStack() as locks:
        held = []
        for item in items:
            try:
                _lock(item, tracking, locks)
                held.append(item)
            except FileNotFoundError:
                results.append(_kept(item, "gone already"))
            except BlockingIOError:
                results.append(_kept(item, "in use: a running process reads or writes it"))
            except TrackingError as error:
                results.append(_kept(item, f"in use: {error}"))
            except OSError as error:
                results.append(_kept(item, f"cannot be locked: {error.strerror}"))
        # The user may have thought for an hour, and another process acted until it was locked.
        has_others = any(item.kind != "partial" for item in held)
        seen_now = look(work_dir, tracking, older_than_s) if has_others else []
        now = {item.path: item for item in seen_now}
        for item in held:
            if item.kind == "partial":
                judged = _look_again(item, older_than_s)
            else:
                judged = now.get(item.path) or _kept(item, "gone already")
            results.append(_remove(judged) if judged.is_garbage else judged)
    return results


def _lock(item: KeptItem, tracking: Tracking, locks: ExitStack) -> None:
    if item.kind == "partial":
        locks.enter_context(partial_lock(item.path))
    for experiment_id in item.experiment_ids:
        identity = (tracking.place, experiment_id, item.plan_digest)
        locks.enter_context(only_one(f"the merge {item.path.name}", *identity))
    locks.enter_context(alone(item.path))


def _look_again(partial: KeptItem, older_than_s: float) -> KeptItem:
    # Not by ``look``: to that, our own lock is another process.
    if partial.path.name.endswith(DOOMED):
        return partial
    try:
        is_young = usage(partial.path).age_s < older_than_s
    except OSError as error:
        return _kept(partial, f"cannot be read: {error.strerror}")
    return _kept(partial, YOUNG) if is_young else partial


def _remove(item: KeptItem) -> KeptItem:
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


def _kept(item: KeptItem, reason: str) -> KeptItem:
    return dataclasses.replace(item, is_garbage=False, reason=reason)


def _without(item: KeptItem, inside: Sequence[KeptItem]) -> KeptItem:
    """The item without what is listed by itself."""
    own = [one for one in inside if item.path in one.path.parents]
    return dataclasses.replace(
        item,
        nbytes=item.nbytes - sum(one.nbytes for one in own),
        freed=item.freed - sum(one.freed for one in own),
    )


def _parents_of_kept(items: list[KeptItem], known: Mapping[str, MergeUse]) -> list[KeptItem]:
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
    parents = [manifest.get("base"), *manifest.get("sources", [])]
    return [str(parent.get("sha256")) for parent in parents if isinstance(parent, Mapping)]


def _others(work_dir: Path) -> Iterator[KeptItem]:
    for path in _listed(work_dir):
        if path.name not in ("merges", *LISTED_INSIDE):
            yield from _items(path, partial(_at_any_age, WHOLE.get(path.name, UNKNOWN)))


def _at_any_age(verdict: Verdict, _age_s: float) -> Verdict:
    return verdict


def _items(
    path: Path,
    judge: Callable[[float], Verdict],
    digest: str = "",
    experiment_ids: tuple[str, ...] = (),
) -> list[KeptItem]:
    """The item at a path; none where it went away meanwhile."""
    try:
        disk = usage(path)
        kind, is_garbage, reason = judge(disk.age_s)
    except FileNotFoundError:
        return []
    except OSError as error:
        disk, kind, is_garbage = Usage(0, 0, 0.0), "other", False
        reason = f"cannot be read: {error.strerror} ({error.filename})"
        digest, experiment_ids = "", ()
    return [
        KeptItem(
            path=path.absolute(),
            kind=kind,
            nbytes=disk.nbytes,
            freed=disk.freed,
            age_s=disk.age_s,
            is_garbage=is_garbage,
            reason=reason,
            plan_digest=digest,
            experiment_ids=experiment_ids,
        )
    ]


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
