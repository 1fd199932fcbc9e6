"""How a change of aliases is made: written down first, then done in steps that may be repeated.

MLflow sets an alias in one step, but moving two of them is two steps, and it has no
compare-and-set. So a change is written down (tag ``mergeops.change_in_progress``), then applied:
previous, champion, statuses, audit. A reader of @champion sees the old version or the new one, and
the next command completes what a crash left undone. Writers exclude each other by a lock on this
machine and one on the server, and read again after writing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mergeops.errors import TrackingError
from mergeops.promotion.audit import (
    PROMOTE,
    PROPOSED,
    REJECTED,
    ROLLBACK,
    Change,
    add_entry,
    dated_last,
)
from mergeops.store import (
    Tracking,
    hidden,
    is_denied,
    lease,
    only_one,
    or_none,
    own_tags,
    spellings,
)
from mergeops.tracking import find_registered_model

CHAMPION = "champion"
PREVIOUS = "previous"
CHALLENGER = "challenger"
APPROVAL = "approval_status"
"""Tag of a proposed version: pending, approved, rejected or superseded."""
PROPOSAL = "mergeops.proposal"
IN_PROGRESS = "mergeops.change_in_progress"
HOOK = "mergeops.hook."

LockCheck = Callable[[], None]
"""Raises where the lock was lost."""


@contextmanager
def writing(tracking: Tracking, name: str) -> Iterator[LockCheck]:
    """Be the only writer of a model's aliases for the block, after any half-done change is done.

    Raises:
        TrackingError: there is no such model, or another writer is at work.
    """
    what = f"the champion of {name}"
    find_registered_model(tracking, name)
    with only_one(what, tracking.registry_place, name), lease(tracking, what, name) as check_lock:
        half_done = begun(tracking, name)
        if half_done is not None:
            if _is_overtaken(tracking, half_done):
                _remove(tracking, name, IN_PROGRESS)
            else:
                _finish(tracking, half_done, check_lock)
        yield check_lock


def complete(tracking: Tracking, name: str) -> bool:
    """Complete the change that a crash left half-done; whether there was one.

    Raises:
        TrackingError: as ``writing``.
    """
    if begun(tracking, name) is None:
        return False
    with writing(tracking, name):
        return True


def apply(tracking: Tracking, change: Change, check_lock: LockCheck) -> Change:
    """Make a change; after a crash the next command completes it."""
    # A writer that lost the lock may not write over the change of the one that has it.
    check_lock()
    change = dated_last(tracking, change)
    _set(tracking, change.name, IN_PROGRESS, change.to_dict())
    _finish(tracking, change, check_lock)
    return change


def aliases(tracking: Tracking, name: str) -> dict[str, int]:
    """Alias -> version."""
    versions = find_registered_model(tracking, name).aliases
    return {alias: int(version) for alias, version in versions.items()}


def begun(tracking: Tracking, name: str) -> Change | None:
    """The change that a crash left half-done."""
    return _read(tracking, name, IN_PROGRESS)


def proposal(tracking: Tracking, name: str) -> Change | None:
    """The change that waits for another user's approval."""
    return _read(tracking, name, PROPOSAL)


def _read(tracking: Tracking, name: str, tag: str) -> Change | None:
    text = own_tags(find_registered_model(tracking, name).tags).get(tag)
    return Change.from_dict(json.loads(text)) if text else None


def _set(tracking: Tracking, name: str, tag: str, value: Mapping[str, Any]) -> None:
    tracking.client.set_registered_model_tag(name, hidden(tag), json.dumps(value))


def _remove(tracking: Tracking, name: str, tag: str) -> None:
    for spelled in spellings(find_registered_model(tracking, name).tags, tag):
        tracking.client.delete_registered_model_tag(name, spelled)


def set_status(tracking: Tracking, name: str, version: int, status: str) -> None:
    """Tag a version with its status."""
    tracking.client.set_model_version_tag(name, str(version), "mergeops.status", status)


def set_approval(tracking: Tracking, name: str, version: int, status: str) -> None:
    """Tag a proposed version with what became of it, where it was not deleted since."""
    or_none(lambda: tracking.client.set_model_version_tag(name, str(version), APPROVAL, status))


def _is_overtaken(tracking: Tracking, half_done: Change) -> bool:
    """Whether somebody set @champion by hand or deleted the version since: that is newer."""
    name, version = half_done.name, half_done.to
    if half_done.kind in (PROMOTE, ROLLBACK):
        champion = aliases(tracking, name).get(CHAMPION)
        if champion not in (half_done.came_from, version):
            return True
    if half_done.kind == REJECTED:
        return False
    return or_none(lambda: tracking.client.get_model_version(name, str(version))) is None


def _finish(tracking: Tracking, change: Change, check_lock: LockCheck) -> None:
    # Every step may be repeated, and the next command completes what a crash between two leaves.
    client = tracking.client
    if change.kind == PROPOSED:
        client.set_registered_model_alias(change.name, CHALLENGER, str(change.to))
        client.set_model_version_tag(change.name, str(change.to), APPROVAL, "pending")
        _set(tracking, change.name, PROPOSAL, change.to_dict())
    elif change.kind == REJECTED:
        _close_proposal(tracking, change, "rejected")
    else:
        _move_champion(tracking, change, check_lock)
    add_entry(tracking, change)
    if change.hooks:
        delivery = {"change": change.to_dict(), "pending": list(change.hooks)}
        _set(tracking, change.name, f"{HOOK}{change.id}", delivery)
    _remove(tracking, change.name, IN_PROGRESS)


def _move_champion(tracking: Tracking, change: Change, check_lock: LockCheck) -> None:
    client, before = tracking.client, change.came_from
    # A version that was champion may be deleted before a change that a crash cut off goes on.
    if before is not None:
        or_none(lambda: client.set_registered_model_alias(change.name, PREVIOUS, str(before)))
    check_lock()
    client.set_registered_model_alias(change.name, CHAMPION, str(change.to))
    champion = aliases(tracking, change.name).get(CHAMPION)
    if champion != change.to:
        raise TrackingError(
            f"{change.name}@champion became version {champion} while version {change.to} was being "
            "promoted; somebody else promotes too: agree, then promote again"
        )
    set_status(tracking, change.name, change.to, "promoted")
    if before is not None:
        or_none(lambda: set_status(tracking, change.name, before, "superseded"))
    waiting = proposal(tracking, change.name)
    if waiting is not None and waiting.to == change.to:
        _close_proposal(tracking, change, "approved" if change.proposed_by else "superseded")


def _close_proposal(tracking: Tracking, change: Change, outcome: str) -> None:
    client = tracking.client
    set_approval(tracking, change.name, change.to, outcome)
    if aliases(tracking, change.name).get(CHALLENGER) == change.to:
        try:
            client.delete_registered_model_alias(change.name, CHALLENGER)
        except TrackingError as error:
            # MLflow lets who may set an alias not delete it. What waits is said by the tag; the
            # alias is set anew by the next proposal.
            if not is_denied(error):
                raise
    # The tag last: it is what says that there is something to close.
    _remove(tracking, change.name, PROPOSAL)
