"""What happened to @champion: one entry a change, added and never rewritten.

Every entry is a tag of the registered model, named by its time and digest, so that two writers
cannot overwrite each other's entries. A user who may edit the model in MLflow can delete tags, too:
the audit is a record among colleagues, no seal.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.schema import build
from mergeops.store import Tracking, hidden, own_tags
from mergeops.tracking import find_registered_model

AUDIT = "mergeops.promotion."
"""Written hidden, as every tag of a registered model: see ``store.hidden``."""
PROMOTE, ROLLBACK = "promote", "rollback"
REFUSED, PROPOSED, REJECTED = "refused", "proposed", "rejected"
TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
"""UTC to the microsecond, which sorts as a text."""


@dataclass(frozen=True)
class Change:
    """One entry of the audit: what became @champion, why, and by whom."""

    name: str
    kind: str
    """promote, rollback, refused (by the gate), proposed (for approval) or rejected (by a user)."""
    to: int
    """The version that is @champion now; for ``refused``, ``proposed`` and ``rejected`` the one
    that is not."""
    came_from: int | None
    """The version that was @champion before."""
    at: str
    """UTC, ISO 8601."""
    by: str
    evidence_sha256: str | None = None
    """Digest of the gate's verdict, which is ``gate.json`` of the trial's run."""
    forced: bool = False
    reason: str | None = None
    proposed_by: str | None = None
    """Of a promotion that another user approved."""
    hooks: tuple[str, ...] = ()
    """The hooks that are to run: command, webhook."""
    was_made: bool = field(default=False, compare=False)
    """Whether the command found the change made before, and had nothing to do; not kept."""

    @property
    def id(self) -> str:
        """Time and digest: names the entry, and sorts by time."""
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
        return f"{self.at.replace('-', '').replace(':', '')}.{digest[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; ``came_from`` is spelled ``from``."""
        raw = dataclasses.asdict(self) | {"hooks": list(self.hooks)}
        del raw["was_made"]
        raw["from"] = raw.pop("came_from")
        return raw

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Change:
        """What ``to_dict`` gave, by this or an older version of mergeops."""
        values = {**raw, "came_from": raw["from"]}
        del values["from"]
        change: Change = build(cls, values, "change.")
        return change

    def as_made(self) -> Change:
        """The change, as one that was made before."""
        return dataclasses.replace(self, was_made=True)


def audit(tracking: Tracking, name: str) -> list[Change]:
    """Every promotion, rollback, refusal, proposal and rejection of a model, oldest first.

    Raises:
        TrackingError: there is no such registered model.
    """
    tags = own_tags(find_registered_model(tracking, name).tags)
    entries = [Change.from_dict(json.loads(v)) for k, v in tags.items() if k.startswith(AUDIT)]
    return sorted(entries, key=lambda change: change.id)


def add_entry(tracking: Tracking, change: Change) -> None:
    """Add an entry; the same one twice is one."""
    tracking.client.set_registered_model_tag(
        change.name, hidden(f"{AUDIT}{change.id}"), json.dumps(change.to_dict())
    )


def now() -> str:
    """UTC to the microsecond."""
    return datetime.datetime.now(datetime.UTC).strftime(TIME)


def dated_last(tracking: Tracking, change: Change) -> Change:
    """The change behind all entries: the clock of this machine may be behind another's, or back."""
    last = max((entry.at for entry in audit(tracking, change.name)), default="")
    if change.at > last:
        return change
    after = datetime.datetime.strptime(last, TIME) + datetime.timedelta(microseconds=1)
    return dataclasses.replace(change, at=after.strftime(TIME))
