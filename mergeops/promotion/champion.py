"""Which version is @champion: moved by one writer at a time, with an audit and a way back.

The steps of a change, and what makes them complete or absent, are in ``changes``; approval by a
second user is in ``approval``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mergeops.errors import ConfigError, GateRefusedError, TrackingError
from mergeops.promotion.audit import (
    PROMOTE,
    PROPOSED,
    REFUSED,
    ROLLBACK,
    Change,
    add_entry,
    audit,
    now,
)
from mergeops.promotion.changes import (
    CHAMPION,
    PREVIOUS,
    aliases,
    apply,
    proposal,
    set_approval,
    set_status,
    writing,
)
from mergeops.redact import redact
from mergeops.store import Tracking
from mergeops.tracking import find_version, reopen

NO_CHAMPION = 0
"""As ``expect_current``: there must be none yet."""
REASONS_LIMIT = 2000
"""Characters of a refusal's reasons in the audit, whose entries hold 5000."""


def find_champion(tracking: Tracking, name: str) -> int | None:
    """The version that is @champion, or None."""
    return aliases(tracking, name).get(CHAMPION)


def make_champion(
    tracking: Tracking,
    name: str,
    version: int,
    verdict: Mapping[str, Any],
    *,
    passed: bool,
    user: str,
    expect_current: int | None = None,
    force: bool = False,
    reason: str | None = None,
    approval: bool = False,
    hooks: tuple[str, ...] = (),
) -> Change:
    """Make a version @champion, the champion so far @previous, and write both down.

    Args:
        verdict: the gate's verdict as JSON types, with ``decision`` and ``reasons``; kept as
            ``gate.json`` of the trial's run, and beside earlier ones as ``gate/DIGEST.json``,
            whose bytes have the digest that the audit names.
        passed: what the verdict comes to.
        expect_current: refuse unless this version is @champion now; NO_CHAMPION: unless none is.
        force: promote although the gate did not pass; needs a reason.
        approval: only propose: the version becomes @challenger until another user approves.
        hooks: which run once it is @champion: command, webhook.

    Returns:
        The audit's entry; where the version is @champion already, the one that made it so.

    Raises:
        GateRefusedError: not passed and not forced; the version's status becomes ``rejected``,
            unless the verdict is inconclusive.
        ConfigError: forced without a reason.
        TrackingError: no such model or version, another champion than expected, another proposal
            that waits, or another writer.
    """
    check_force(force, reason)
    verdict = redact(verdict)
    kind = PROPOSED if approval else PROMOTE
    with writing(tracking, name) as check_lock:
        run_id = find_version(tracking, name, version).run_id
        current = find_champion(tracking, name)
        check_current(name, current, expect_current)
        _keep_verdict(tracking, run_id, verdict)
        change = Change(
            name=name,
            kind=kind if passed or force else REFUSED,
            to=version,
            came_from=current,
            at=now(),
            by=user,
            evidence_sha256=_sha256(verdict),
            forced=not passed and force,
            reason=redact(reason),
            hooks=() if approval else hooks,
        )
        if change.kind == REFUSED:
            reasons = verdict.get("reasons") or ["the evidence does not support it"]
            told = change.reason or "; ".join(reasons)[:REASONS_LIMIT]
            change = dataclasses.replace(change, reason=told, hooks=())
            # Too few items to tell is no rejection.
            if current != version and verdict.get("decision") != "inconclusive":
                set_status(tracking, name, version, "rejected")
            add_entry(tracking, change)
            raise GateRefusedError(
                f"version {version} of {name} is not promoted: {reasons[0]}{_more(reasons, name)}"
            )
        if current == version:
            return made_champion(tracking, name, version) or change
        if change.kind == PROPOSED:
            waiting = proposal(tracking, name)
            if waiting is not None and waiting.came_from != current:
                # Its evidence was against another champion.
                set_approval(tracking, name, waiting.to, "superseded")
            elif waiting is not None and waiting.to == version:
                return waiting.as_made()
            elif waiting is not None:
                raise TrackingError(
                    f"version {waiting.to} of {name}, proposed by {waiting.by}, waits for "
                    f"approval; `mergeops approve {name}` or `mergeops reject {name}` first"
                )
        return apply(tracking, change, check_lock)


def rollback(
    tracking: Tracking,
    name: str,
    *,
    user: str,
    reason: str | None = None,
    expect_current: int | None = None,
    hooks: tuple[str, ...] = (),
) -> Change:
    """Make @previous the @champion again, and the champion so far @previous.

    The same command again finds it done: after a rollback only one that names the champion of now
    in ``expect_current`` goes back once more.

    Returns:
        The audit's entry; where the rollback was made before or cut off, that one's.

    Raises:
        TrackingError: no such model, no champion, another than expected, or no previous one.
    """
    with writing(tracking, name) as check_lock:
        versions = aliases(tracking, name)
        current, previous = versions.get(CHAMPION), versions.get(PREVIOUS)
        last = made_champion(tracking, name, current) if current is not None else None
        is_done = last is not None and (last.kind, last.came_from) == (ROLLBACK, previous)
        if last is not None and is_done and expect_current in (None, previous):
            # A second rollback would undo the first.
            return last
        check_current(name, current, expect_current)
        if current is None:
            raise TrackingError(f"{name} has no @champion; promote a version first")
        if previous is None or previous == current:
            raise TrackingError(
                f"{name} has no @previous version to go back to; version {current} is its first "
                "champion"
            )
        find_version(tracking, name, previous)
        change = Change(
            name=name,
            kind=ROLLBACK,
            to=previous,
            came_from=current,
            at=now(),
            by=user,
            reason=redact(reason),
            hooks=hooks,
        )
        return apply(tracking, change, check_lock)


def rolled_back(tracking: Tracking, name: str, version: int) -> Change | None:
    """The rollback from a version, where nobody made it @champion again since."""
    moves = [move for move in _moves(tracking, name) if version in (move.to, move.came_from)]
    if moves and moves[-1].kind == ROLLBACK and moves[-1].came_from == version:
        return moves[-1]
    return None


def made_champion(tracking: Tracking, name: str, version: int) -> Change | None:
    """The change that made a version @champion last, if mergeops made it."""
    moves = [move for move in _moves(tracking, name) if move.to == version]
    return moves[-1].as_made() if moves else None


def _moves(tracking: Tracking, name: str) -> list[Change]:
    """The changes that moved @champion, oldest first."""
    return [change for change in audit(tracking, name) if change.kind in (PROMOTE, ROLLBACK)]


def check_force(force: bool, reason: str | None) -> None:
    """Refuse ``--force`` without a reason.

    Raises:
        ConfigError: says so.
    """
    if force and not (reason or "").strip():
        raise ConfigError("--force needs --reason: why the gate is overruled; the audit keeps it")


def check_current(name: str, current: int | None, expected: int | None) -> None:
    """Refuse where another version is @champion than expected.

    Args:
        expected: None expects nothing, NO_CHAMPION none.

    Raises:
        TrackingError: says which is.
    """
    if expected is None or (current or NO_CHAMPION) == expected:
        return
    raise TrackingError(
        f"{name}@champion is {version_text(current)}, not {version_text(expected)} as expected; "
        "look at what changed, then promote again"
    )


def version_text(version: int | None) -> str:
    """A version for a message."""
    return f"version {version}" if version else "no version"


def _more(reasons: Sequence[str], name: str) -> str:
    if len(reasons) == 1:
        return ""
    return f"; and {len(reasons) - 1} more: `mergeops history {name}`"


def _keep_verdict(tracking: Tracking, run_id: str | None, verdict: Mapping[str, Any]) -> None:
    if run_id and tracking.client.get_run(run_id).data.tags.get("mergeops.role") == "merge":
        trial = reopen(tracking, run_id)
        # The audit names evidence by its digest, so a later verdict may not replace it.
        trial.log_text(_canonical(verdict), f"gate/{_sha256(verdict)[:16]}.json")
        trial.log_json(dict(verdict), "gate.json")


def _sha256(verdict: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(verdict).encode()).hexdigest()


def _canonical(verdict: Mapping[str, Any]) -> str:
    return json.dumps(verdict, sort_keys=True)
