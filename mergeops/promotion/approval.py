"""Four eyes: what one user proposed another completes, or rejects.

Users are told apart by what MLflow or the operating system says (``store.current_user``). That
keeps honest people from promoting alone by accident; it is a security boundary only where the
MLflow server authenticates its users and lets no one else edit the model.
"""

from __future__ import annotations

import dataclasses

from mergeops.errors import GateRefusedError, TrackingError
from mergeops.promotion.audit import PROMOTE, REJECTED, Change, audit, now
from mergeops.promotion.champion import check_current, find_champion, version_text
from mergeops.promotion.changes import apply, proposal, writing
from mergeops.redact import redact
from mergeops.store import Tracking
from mergeops.tracking import find_version


def approve(
    tracking: Tracking,
    name: str,
    *,
    user: str,
    version: int | None = None,
    expect_current: int | None = None,
    reason: str | None = None,
    hooks: tuple[str, ...] = (),
) -> Change:
    """Make the proposed version @champion.

    Args:
        user: another one than the proposer.
        version: what the user means to approve; None takes what waits.
        expect_current: refuse unless this version is @champion now.
        reason: of the approval; None keeps the proposal's.
        hooks: which run afterwards.

    Returns:
        The audit's entry; where it was approved before, and is @champion still, that one's.

    Raises:
        GateRefusedError: the proposer approves.
        TrackingError: nothing waits, another version does, or the champion is no longer the one
            that the evidence was against.
    """
    with writing(tracking, name) as check_lock:
        current = find_champion(tracking, name)
        done = _decided_before(tracking, name, PROMOTE, version)
        if done and done.to == current and expect_current in (None, current, done.came_from or 0):
            return done
        waiting = _waiting(tracking, name, version)
        if waiting.by == user:
            raise GateRefusedError(
                f"version {waiting.to} of {name} was proposed by {user}; another user has to "
                "approve it"
            )
        check_current(name, current, expect_current)
        if current != waiting.came_from:
            was = version_text(waiting.came_from)
            raise TrackingError(
                f"{name}@champion is {version_text(current)}, and was {was} when version "
                f"{waiting.to} was judged; promote it again, against the champion of today"
            )
        find_version(tracking, name, waiting.to)
        why = redact(reason) or waiting.reason
        return apply(tracking, _decided(waiting, PROMOTE, user, why, hooks), check_lock)


def reject(
    tracking: Tracking, name: str, *, user: str, reason: str, version: int | None = None
) -> Change:
    """Close a proposal without promoting; the proposer may do so, too.

    Returns:
        The audit's entry; where it was rejected before, that one's.

    Raises:
        TrackingError: nothing waits, or another version does.
    """
    with writing(tracking, name) as check_lock:
        if done := _decided_before(tracking, name, REJECTED, version):
            return done
        waiting = _waiting(tracking, name, version)
        return apply(tracking, _decided(waiting, REJECTED, user, redact(reason)), check_lock)


def _waiting(tracking: Tracking, name: str, version: int | None) -> Change:
    waiting = proposal(tracking, name)
    if waiting is None:
        raise TrackingError(
            f"{name} has no proposal that waits for approval{_last(tracking, name)}; `mergeops "
            f"promote {name} promote.approval=true` makes one"
        )
    if version is not None and version != waiting.to:
        raise TrackingError(
            f"version {waiting.to} of {name} waits for approval, not version {version}"
        )
    return waiting


def _decided(
    waiting: Change, kind: str, user: str, reason: str | None, hooks: tuple[str, ...] = ()
) -> Change:
    return dataclasses.replace(
        waiting,
        kind=kind,
        at=now(),
        by=user,
        proposed_by=waiting.by,
        reason=reason,
        hooks=hooks,
    )


def _decided_before(tracking: Tracking, name: str, kind: str, version: int | None) -> Change | None:
    """The last decision, where nothing waits since and it is the one that is asked for again."""
    last = _last_decision(tracking, name)
    if last is None or last.kind != kind or version not in (None, last.to):
        return None
    return last.as_made() if proposal(tracking, name) is None else None


def _last_decision(tracking: Tracking, name: str) -> Change | None:
    decided = [change for change in audit(tracking, name) if change.proposed_by is not None]
    return decided[-1] if decided else None


def _last(tracking: Tracking, name: str) -> str:
    """What became of the last proposal, for who decides otherwise."""
    last = _last_decision(tracking, name)
    if last is None:
        return ""
    decision = "approved" if last.kind == PROMOTE else "rejected"
    return f": version {last.to} was {decision} by {last.by} at {last.at}"
