"""Promotion: who is @champion, changed by one writer at a time, with an audit and a way back.

MLflow sets an alias in one step, but moving two of them is two steps, and it has no
compare-and-set. So a change is written down first (tag ``mergeops.change_in_progress``), then
applied in steps that may be repeated: previous, champion, statuses, audit. Whatever a crash leaves,
the next command completes. Writers on one machine exclude each other by a lock; one on another
machine is noticed by reading again, except in the moment between reading and writing.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.errors import ConfigError, GateRefusedError, TrackingError
from mergeops.tracking.client import is_missing
from mergeops.tracking.keys import quoted
from mergeops.tracking.lock import only_one
from mergeops.tracking.registry import find_registered_model, find_version
from mergeops.tracking.trial import reopen

if TYPE_CHECKING:
    from mergeops.tracking.connection import Tracking

CHAMPION = "champion"
PREVIOUS = "previous"
IN_PROGRESS = "mergeops.change_in_progress"
AUDIT = "mergeops.promotion."


@dataclass(frozen=True)
class Change:
    """One entry of the audit: what became @champion, why, and by whom."""

    name: str
    kind: str
    """promote, rollback or refused."""
    to: int
    """The version that is @champion now; for ``refused`` the one that is not."""
    came_from: int | None
    """The version that was @champion before."""
    at: str
    """UTC, ISO 8601."""
    by: str
    evidence_sha256: str | None = None
    """Digest of the gate's verdict, which is ``gate.json`` of the trial's run."""
    forced: bool = False
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; ``came_from`` is spelled ``from``."""
        raw = dataclasses.asdict(self)
        raw["from"] = raw.pop("came_from")
        return raw

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Change:
        """What ``to_dict`` gave."""
        values = dict(raw)
        values["came_from"] = values.pop("from")
        return cls(**values)


@dataclass(frozen=True)
class Candidate:
    """A registered merge."""

    version: int
    run_id: str
    model_id: str | None
    plan_digest: str
    weights_sha256: str
    status: str
    dev_score: float
    """Pooled score on the dev part; NaN where the trial was not scored."""
    higher_is_better: bool = True
    questions: str = ""
    """Digest of the questions that the dev score is on."""

    @property
    def merit(self) -> float:
        """The dev score, negated where lower is better."""
        return self.dev_score if self.higher_is_better else -self.dev_score


def candidates(tracking: Tracking, name: str) -> list[Candidate]:
    """The registered merges of ``name``, the best pooled dev score first.

    Scores on other questions cannot be compared: merges that answered the questions of the newest
    one come first, those without scores last.

    Raises:
        TrackingError: there is no such registered model.
    """
    client = tracking.client
    find_registered_model(tracking, name)
    wanted = f"name = {quoted(name)} and tags.`mergeops.role` = 'merge'"
    found = []
    for version in client.search_model_versions(wanted):
        run_id = version.tags.get("mergeops.run_id") or str(version.run_id)
        try:
            run = client.get_run(run_id).data
        except TrackingError as error:
            if not is_missing(error):
                raise
            # Its run was deleted: nothing can be shown for it any more.
            continue
        found.append(
            Candidate(
                version=int(version.version),
                run_id=run_id,
                model_id=run.tags.get("mergeops.model_id"),
                plan_digest=version.tags.get("mergeops.plan_digest", ""),
                weights_sha256=version.tags.get("mergeops.weights_sha256", ""),
                status=version.tags.get("mergeops.status", ""),
                dev_score=float(run.metrics.get("pooled", math.nan)),
                higher_is_better=run.tags.get("mergeops.higher_is_better.dev") != "false",
                questions=run.tags.get("mergeops.questions.dev", ""),
            )
        )
    scored = [candidate for candidate in found if not math.isnan(candidate.dev_score)]
    newest = max(scored, key=lambda c: c.version).questions if scored else ""
    return sorted(
        found,
        key=lambda c: (math.isnan(c.dev_score), c.questions != newest, -c.merit, c.version),
    )


def champion(tracking: Tracking, name: str) -> int | None:
    """The version that is @champion, or None."""
    return _aliases(tracking, name).get(CHAMPION)


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
) -> Change:
    """Make a version @champion, the champion so far @previous, and write both down.

    Args:
        verdict: the gate's verdict as JSON types, with ``decision`` and ``reasons``; kept as
            ``gate.json`` of the trial's run.
        passed: what the verdict comes to.
        expect_current: refuse unless this version is @champion now.
        force: promote although the gate did not pass; needs a reason.

    Returns:
        The audit's entry; where the version is @champion already, the one that made it so.

    Raises:
        GateRefusedError: not passed and not forced; the version's status becomes ``rejected``,
            unless the verdict is inconclusive.
        ConfigError: forced without a reason.
        TrackingError: no such model or version, another champion than expected, or another writer.
    """
    if force and not (reason or "").strip():
        raise ConfigError("--force needs --reason: why the gate is overruled; the audit keeps it")
    with _writing(tracking, name):
        found = find_version(tracking, name, version)
        current = champion(tracking, name)
        if expect_current is not None and current != expect_current:
            now = f"version {current}" if current else "no version"
            raise TrackingError(
                f"{name}@champion is {now}, not version {expect_current} as expected; look at what "
                "changed, then promote again"
            )
        evidence = hashlib.sha256(json.dumps(verdict, sort_keys=True).encode()).hexdigest()
        _keep_verdict(tracking, found.run_id, verdict)
        change = Change(
            name=name,
            kind="promote" if passed or force else "refused",
            to=version,
            came_from=current,
            at=_now(),
            by=user,
            evidence_sha256=evidence,
            forced=not passed and force,
            reason=reason,
        )
        if change.kind == "refused":
            # Too few items to tell is no rejection.
            if current != version and verdict.get("decision") != "inconclusive":
                _set_status(tracking, name, version, "rejected")
            _write_audit(tracking, change)
            reasons = "; ".join(verdict.get("reasons") or ["the evidence does not support it"])
            raise GateRefusedError(
                f"version {version} of {name} is not promoted: {reasons}; see gate.json of its "
                "run, or overrule with --force --reason TEXT"
            )
        if current == version:
            made = [entry for entry in audit(tracking, name) if entry.to == version]
            return made[-1] if made else change
        return _apply(tracking, change)


def rollback(tracking: Tracking, name: str, *, user: str, reason: str | None = None) -> Change:
    """Make @previous the @champion again, and the champion so far @previous.

    Raises:
        TrackingError: no such model, no champion, or no previous one.
    """
    with _writing(tracking, name):
        aliases = _aliases(tracking, name)
        current, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if current is None:
            raise TrackingError(f"{name} has no @champion; promote a version first")
        if previous is None or previous == current:
            raise TrackingError(
                f"{name} has no @previous version to go back to; version {current} is its first "
                "champion"
            )
        find_version(tracking, name, previous)
        return _apply(
            tracking, Change(name, "rollback", previous, current, _now(), user, reason=reason)
        )


def audit(tracking: Tracking, name: str) -> list[Change]:
    """Every promotion, rollback and refusal of a registered model, oldest first."""
    tags = find_registered_model(tracking, name).tags
    return [
        Change.from_dict(json.loads(value))
        for key, value in sorted(tags.items())
        if key.startswith(AUDIT)
    ]


@contextmanager
def _writing(tracking: Tracking, name: str) -> Iterator[None]:
    # The only writer of a model's aliases on this machine, after any half-done change is done.
    registry = tracking.spec.registry_uri or tracking.uri
    with only_one(f"the champion of {name}", registry, name):
        begun = find_registered_model(tracking, name).tags.get(IN_PROGRESS)
        if begun:
            left = Change.from_dict(json.loads(begun))
            if champion(tracking, name) in (left.came_from, left.to):
                _finish(tracking, left)
            else:
                # Somebody set the alias by hand since: that is newer.
                tracking.client.delete_registered_model_tag(name, IN_PROGRESS)
        yield


def _apply(tracking: Tracking, change: Change) -> Change:
    tracking.client.set_registered_model_tag(change.name, IN_PROGRESS, json.dumps(change.to_dict()))
    _finish(tracking, change)
    return change


def _finish(tracking: Tracking, change: Change) -> None:
    # Every step may be repeated, and a crash between two of them is completed by the next command.
    client = tracking.client
    if change.came_from is not None:
        client.set_registered_model_alias(change.name, PREVIOUS, str(change.came_from))
    client.set_registered_model_alias(change.name, CHAMPION, str(change.to))
    now = champion(tracking, change.name)
    if now != change.to:
        raise TrackingError(
            f"{change.name}@champion became version {now} while version {change.to} was being "
            "promoted; somebody else promotes too: agree, then promote again"
        )
    _set_status(tracking, change.name, change.to, "promoted")
    if change.came_from is not None:
        _set_status(tracking, change.name, change.came_from, "superseded")
    _write_audit(tracking, change)
    client.delete_registered_model_tag(change.name, IN_PROGRESS)


def _aliases(tracking: Tracking, name: str) -> dict[str, int]:
    found = find_registered_model(tracking, name).aliases
    return {alias: int(version) for alias, version in found.items()}


def _set_status(tracking: Tracking, name: str, version: int, status: str) -> None:
    tracking.client.set_model_version_tag(name, str(version), "mergeops.status", status)


def _write_audit(tracking: Tracking, change: Change) -> None:
    stamp = change.at.replace("-", "").replace(":", "")
    tracking.client.set_registered_model_tag(
        change.name, f"{AUDIT}{stamp}", json.dumps(change.to_dict())
    )


def _keep_verdict(tracking: Tracking, run_id: str | None, verdict: Mapping[str, Any]) -> None:
    if not run_id:
        return
    run = tracking.client.get_run(run_id)
    if run.data.tags.get("mergeops.role") == "merge":
        reopen(tracking, run_id).log_json(dict(verdict), "gate.json")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
