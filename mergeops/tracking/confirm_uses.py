"""How often the confirm part was opened for a registered model, counted by tags of that model.

A use is written down before the first confirm item is scored, so a crash, a kill or a forgotten
verdict counts, too. The same candidate against the same references on the same items is the same
use, however often it is asked: nothing new is learned from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergeops.spending import level_of
from mergeops.tracking.registry import find_registered_model

if TYPE_CHECKING:
    from mergeops.tracking.connection import Tracking

USE = "mergeops.confirm_use."


@dataclass(frozen=True)
class Use:
    """One opening of the confirm part."""

    version: int
    """The candidate's."""
    weights_sha256: str
    references: Mapping[str, str]
    """Label -> weights digest."""
    primary: tuple[str, ...]
    """Tasks that had to be better."""
    parts: Mapping[str, str]
    """Task -> digest of its confirm items."""
    at: str
    by: str
    alpha: float
    """Of all uses together."""
    number: int = 0
    """1 for the first use of any of these items; 0 until it is known."""

    @property
    def level(self) -> float:
        """Of this use's test."""
        return level_of(self.number, self.alpha)

    @property
    def key(self) -> str:
        """Equal for the same question."""
        question = [
            self.weights_sha256,
            sorted(self.references.values()),
            sorted(self.primary),
            dict(self.parts),
        ]
        return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:20]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self) | {"primary": list(self.primary)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Use:
        """What ``to_dict`` gave."""
        return cls(**{**raw, "primary": tuple(raw["primary"])})


def uses(tracking: Tracking, name: str) -> list[Use]:
    """Every use, oldest first.

    Raises:
        TrackingError: there is no such registered model.
    """
    tags = find_registered_model(tracking, name).tags
    found = [Use.from_dict(json.loads(v)) for k, v in tags.items() if k.startswith(USE)]
    return sorted(found, key=lambda use: (use.at, use.key))


def next_number(tracking: Tracking, name: str, use: Use) -> int:
    """The number that ``count_use`` would give, without counting."""
    there = uses(tracking, name)
    same = [other for other in there if other.key == use.key and other.number]
    return same[0].number if same else 1 + sum(_shares(other, use) for other in there)


def count_use(tracking: Tracking, name: str, use: Use) -> Use:
    """Write a use down, or find it, and number it among those that share any task's items.

    Two that are counted at the same moment get the larger number both: never one too small.
    """
    for other in uses(tracking, name):
        if other.key == use.key and other.number:
            return other
    tag = f"{USE}{use.key}"
    client = tracking.client
    client.set_registered_model_tag(name, tag, json.dumps(use.to_dict()))
    number = sum(_shares(other, use) for other in uses(tracking, name))
    numbered = dataclasses.replace(use, number=number)
    client.set_registered_model_tag(name, tag, json.dumps(numbered.to_dict()))
    return numbered


def _shares(a: Use, b: Use) -> bool:
    return any(b.parts.get(task) == digest for task, digest in a.parts.items())
