"""Promotion: who is @champion, changed by one writer at a time, with an audit and a way back.

The steps of a change, and what makes them complete or absent, are in ``journal``; approval by a
second user is in ``approval``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergeops.audit import PROMOTE, PROPOSED, REFUSED, ROLLBACK, Change, add_entry, audit, now
from mergeops.errors import ConfigError, GateRefusedError, TrackingError
from mergeops.journal import (
    CHAMPION,
    PREVIOUS,
    aliases,
    apply,
    begun,
    proposal,
    set_approval,
    set_status,
    writing,
)
from mergeops.secrets import redact
from mergeops.tracking.registry import find_version
from mergeops.tracking.trial import reopen

if TYPE_CHECKING:
    from mergeops.tracking.connection import Tracking

NO_CHAMPION = 0
"""As ``expect_current``: there must be none yet."""


def champion(tracking: Tracking, name: str) -> int | None:
    """The version that is @champion, or None."""
    return aliases(tracking, name).get(CHAMPION)


def promote(
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
        hooks: who is told once it is @champion: command, webhook.

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
    with writing(tracking, name) as held:
        found = find_version(tracking, name, version)
        current = champion(tracking, name)
        check_current(name, current, expect_current)
        _keep_verdict(tracking, found.run_id, verdict)
        accepted = PROPOSED if approval else PROMOTE
        change = Change(
            name=name,
            kind=accepted if passed or force else REFUSED,
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
            change = dataclasses.replace(change, reason=change.reason or reasons[0][:500], hooks=())
            # Too few items to tell is no rejection.
            if current != version and verdict.get("decision") != "inconclusive":
                set_status(tracking, name, version, "rejected")
            add_entry(tracking, change)
            raise GateRefusedError(
                f"version {version} of {name} is not promoted: {'; '.join(reasons)}; see gate.json "
                "of its run, or overrule with --force --reason TEXT"
            )
        if current == version:
            moves = (PROMOTE, ROLLBACK)
            made = [e for e in audit(tracking, name) if e.to == version and e.kind in moves]
            return made[-1] if made else change
        if change.kind == PROPOSED:
            waiting = proposal(tracking, name)
            if waiting is not None and waiting.came_from != current:
                # Its evidence was against a champion that is none any more.
                set_approval(tracking, name, waiting.to, "superseded")
            elif waiting is not None and waiting.to == version:
                return waiting
            elif waiting is not None:
                raise TrackingError(
                    f"version {waiting.to} of {name}, proposed by {waiting.by}, waits for "
                    f"approval; `mergeops approve {name}` or `mergeops reject {name}` first"
                )
        return apply(tracking, change, held)


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

    Returns:
        The audit's entry; where an earlier rollback was cut off, that one's, now complete.

    Raises:
        TrackingError: no such model, no champion, another than expected, or no previous one.
    """
    left = begun(tracking, name)
    with writing(tracking, name) as held:
        there = aliases(tracking, name)
        current, previous = there.get(CHAMPION), there.get(PREVIOUS)
        cut_off = left if left is not None and left.kind == ROLLBACK else None
        # The same command again, after a crash: a second rollback would undo the first.
        if cut_off and cut_off.to == current and expect_current in (None, cut_off.came_from):
            return cut_off
        check_current(name, current, expect_current)
        if current is None:
            raise TrackingError(f"{name} has no @champion; promote a version first")
        if previous is None or previous == current:
            raise TrackingError(
                f"{name} has no @previous version to go back to; version {current} is its first "
                "champion"
            )
        find_version(tracking, name, previous)
        why = redact(reason)
        change = Change(name, ROLLBACK, previous, current, now(), user, reason=why, hooks=hooks)
        return apply(tracking, change, held)


def rolled_back(tracking: Tracking, name: str, version: int) -> Change | None:
    """The rollback from a version, where nobody made it @champion again since."""
    for change in reversed(audit(tracking, name)):
        if change.kind in (PROMOTE, ROLLBACK) and version in (change.to, change.came_from):
            gone = change.kind == ROLLBACK and change.came_from == version
            return change if gone else None
    return None


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
    says = [f"version {v}" if v else "no version" for v in (current, expected)]
    raise TrackingError(
        f"{name}@champion is {says[0]}, not {says[1]} as expected; look at what changed, then "
        "promote again"
    )


def _keep_verdict(tracking: Tracking, run_id: str | None, verdict: Mapping[str, Any]) -> None:
    if not run_id:
        return
    run = tracking.client.get_run(run_id)
    if run.data.tags.get("mergeops.role") == "merge":
        trial = reopen(tracking, run_id)
        # The audit names evidence by its digest, so a later verdict may not replace it.
        trial.log_text(_canonical(verdict), f"gate/{_sha256(verdict)[:16]}.json")
        trial.log_json(dict(verdict), "gate.json")


def _sha256(verdict: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(verdict).encode()).hexdigest()


def _canonical(verdict: Mapping[str, Any]) -> str:
    return json.dumps(verdict, sort_keys=True)
