"""Four eyes: what one user proposed another completes, or rejects.

Who is who is what MLflow or the operating system says (``tracking.user``). It keeps honest people
from promoting alone by accident; it is a security boundary only where the MLflow server
authenticates its users and lets no one else edit the model.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mergeops.audit import PROMOTE, REJECTED, Change, audit, now
from mergeops.errors import GateRefusedError, TrackingError
from mergeops.journal import apply, proposal, writing
from mergeops.promote import champion, check_current
from mergeops.secrets import redact
from mergeops.tracking.registry import find_version

if TYPE_CHECKING:
    from mergeops.tracking.connection import Tracking


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
        hooks: who is told afterwards.

    Raises:
        GateRefusedError: the proposer approves.
        TrackingError: nothing waits, another version does, or the champion is no longer the one
            that the evidence was against.
    """
    with writing(tracking, name) as held:
        waiting = _waiting(tracking, name, version)
        if waiting.by == user:
            raise GateRefusedError(
                f"version {waiting.to} of {name} was proposed by {user}; another user has to "
                "approve it"
            )
        current = champion(tracking, name)
        check_current(name, current, expect_current)
        if current != waiting.came_from:
            now_is = f"version {current}" if current else "no version"
            was = f"version {waiting.came_from}" if waiting.came_from else "no version"
            raise TrackingError(
                f"{name}@champion is {now_is}, and was {was} when version {waiting.to} was judged; "
                "promote it again, against the champion of today"
            )
        find_version(tracking, name, waiting.to)
        approved = dataclasses.replace(
            waiting,
            kind=PROMOTE,
            at=now(),
            by=user,
            proposed_by=waiting.by,
            reason=redact(reason) or waiting.reason,
            hooks=hooks,
        )
        return apply(tracking, approved, held)


def reject(
    tracking: Tracking, name: str, *, user: str, reason: str, version: int | None = None
) -> Change:
    """Close a proposal without promoting; the proposer may do so, too.

    Raises:
        TrackingError: nothing waits, or another version does.
    """
    with writing(tracking, name) as held:
        waiting = _waiting(tracking, name, version)
        rejected = dataclasses.replace(
            waiting,
            kind=REJECTED,
            at=now(),
            by=user,
            proposed_by=waiting.by,
            reason=redact(reason),
            hooks=(),
        )
        return apply(tracking, rejected, held)


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


def _last(tracking: Tracking, name: str) -> str:
    """What became of the last proposal: whoever decides once more after a crash sees it done."""
    decided = [change for change in audit(tracking, name) if change.proposed_by is not None]
    if not decided:
        return ""
    last = decided[-1]
    what = "approved" if last.kind == PROMOTE else "rejected"
    return f": version {last.to} was {what} by {last.by} at {last.at}"
