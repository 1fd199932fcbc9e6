"""Everything that happened to a registered model's aliases and its confirm part, in one list."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mergeops.errors import GateRefusedError
from mergeops.promotion.audit import PROMOTE, PROPOSED, REFUSED, REJECTED, ROLLBACK, Change, audit
from mergeops.promotion.champion import NO_CHAMPION, version_text
from mergeops.promotion.changes import CHALLENGER, CHAMPION, PREVIOUS, aliases, begun, proposal
from mergeops.promotion.hooks import Delivery, deliveries
from mergeops.promotion.uses import Use, uses
from mergeops.store import Tracking


@dataclass(frozen=True)
class Event:
    """One line of the history."""

    at: str
    """UTC, ISO 8601."""
    what: str
    """E.g. ``promoted``, ``refused``, ``confirm use 2``."""
    version: int
    by: str
    about: str
    """E.g. ``was version 3; forced: demo on Monday``."""
    record: dict[str, Any]
    """The whole entry."""


@dataclass(frozen=True, kw_only=True)
class History:
    """A registered model's past and present."""

    name: str
    champion: int | None
    previous: int | None
    challenger: int | None
    waiting: Change | None
    """A proposal that waits for approval."""
    unfinished: Change | None
    """A change that a crash left half-done; the next command that writes completes it."""
    events: tuple[Event, ...]
    """Oldest first."""

    def check_champion(self, expected: int | None) -> None:
        """Refuse where another version is @champion than expected.

        Args:
            expected: None expects nothing, 0 none.

        Raises:
            GateRefusedError: says which is, since when and by whom.
        """
        if expected is None or (self.champion or NO_CHAMPION) == expected:
            return
        moved = [
            event
            for event in self.events
            if event.version == self.champion and event.record.get("kind") in (PROMOTE, ROLLBACK)
        ]
        since = f", {moved[-1].what} at {moved[-1].at} by {moved[-1].by}" if moved else ""
        raise GateRefusedError(
            f"{self.name}@champion is {version_text(self.champion)}{since}, not "
            f"{version_text(expected)} as expected"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {
            "waiting": self.waiting.to_dict() if self.waiting else None,
            "unfinished": self.unfinished.to_dict() if self.unfinished else None,
            "events": [asdict(event) for event in self.events],
        }


def read_history(tracking: Tracking, name: str) -> History:
    """Promotions, rollbacks, refusals, proposals, approvals, uses of the confirm part and hooks.

    Raises:
        TrackingError: there is no such registered model.
    """
    versions, waiting = aliases(tracking, name), proposal(tracking, name)
    champion, challenger = versions.get(CHAMPION), versions.get(CHALLENGER)
    events = [
        *map(_of_change, audit(tracking, name)),
        *map(_of_use, uses(tracking, name)),
        *(event for delivery in deliveries(tracking, name) for event in _of_hooks(delivery)),
    ]
    return History(
        name=name,
        champion=champion,
        previous=versions.get(PREVIOUS),
        challenger=challenger if waiting or challenger != champion else None,
        waiting=waiting,
        unfinished=begun(tracking, name),
        events=tuple(sorted(events, key=lambda event: event.at)),
    )


def _of_change(change: Change) -> Event:
    words = {
        PROMOTE: "approved and promoted" if change.proposed_by else "promoted",
        ROLLBACK: "rolled back",
        REFUSED: "refused by the gate",
        PROPOSED: "proposed",
        REJECTED: "rejected",
    }
    before = f"champion was version {change.came_from}" if change.came_from else ""
    said = [before or "no champion before"]
    if change.proposed_by:
        said.append(f"proposed by {change.proposed_by}")
    if change.forced:
        said.append(f"FORCED: {change.reason}")
    elif change.reason:
        said.append(change.reason)
    if change.evidence_sha256:
        said.append(f"evidence {change.evidence_sha256[:16]}")
    about = "; ".join(said)
    return Event(change.at, words[change.kind], change.to, change.by, about, change.to_dict())


def _of_use(use: Use) -> Event:
    against = ", ".join(use.references) or "nothing"
    about = f"level {use.level:.3g} of alpha {use.alpha:g}; against {against}"
    what = f"confirm use {use.number}"
    return Event(use.at, what, use.version, use.by, about, use.to_dict())


def _of_hooks(delivery: Delivery) -> list[Event]:
    change, record = delivery.change, delivery.to_dict()
    events = [
        Event(at, f"told {hook}", change.to, change.by, f"of {change.kind}", record)
        for hook, at in delivery.done.items()
    ]
    if delivery.pending:
        waiting = ", ".join(delivery.pending)
        said = f"{delivery.attempts} tries: {delivery.error}" if delivery.error else "not tried yet"
        events.append(Event(change.at, f"not told {waiting}", change.to, change.by, said, record))
    return events
