"""How often the confirm part was opened for a registered model, counted by tags of that model.

A use is written down before the first confirm item is scored, so a crash, a kill or a forgotten
verdict counts too. The same question (candidate, references, primary tasks, items, prompts,
metrics and clusters) is the same use, however often it is asked: nothing new is learned from it.

Which items a use opened is told by a sketch of each task's items: a tag of its own, named by the
items' digest, since a tag holds 5000 characters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergeops.schema import build
from mergeops.store import Tracking, hidden, own_tags
from mergeops.tracking import find_registered_model

USE = "mergeops.confirm_use."
SKETCH = "mergeops.confirm_items."


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
    asked: str = ""
    """Digest of the questions: items, prompts, metrics and clusters."""
    sketches: Mapping[str, str] = field(default_factory=dict)
    """Digest of a task's confirm items -> the smallest of the items' own digests, with blanks."""

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
            self.asked,
        ]
        return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:20]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, without the sketches."""
        raw = dataclasses.asdict(self) | {"primary": list(self.primary)}
        del raw["sketches"]
        return raw

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Use:
        """What ``to_dict`` gave; without ``primary`` it is all tasks."""
        use: Use = build(cls, {**raw, "primary": list(raw.get("primary", raw["parts"]))}, "use.")
        return use


def uses(tracking: Tracking, name: str) -> list[Use]:
    """Every use, oldest first.

    Raises:
        TrackingError: there is no such registered model.
    """
    tags = own_tags(find_registered_model(tracking, name).tags)
    counted = []
    for tag, text in tags.items():
        if tag.startswith(USE):
            use = Use.from_dict(json.loads(text))
            sketches = {d: tags[SKETCH + d] for d in use.parts.values() if SKETCH + d in tags}
            counted.append(dataclasses.replace(use, sketches=sketches))
    return sorted(counted, key=lambda use: (use.at, use.key))


def next_use(tracking: Tracking, name: str, use: Use) -> Use:
    """What ``count_use`` would give, without counting."""
    counted = uses(tracking, name)
    number = 1 + sum(_shares(other, use) for other in counted if other.key != use.key)
    return _same_question(counted, use) or dataclasses.replace(use, number=number)


def count_use(tracking: Tracking, name: str, use: Use) -> Use:
    """Write a use down, or find it, and number it among those that share items with it.

    Two that are counted at the same moment get the larger number both: never one too small. A use
    that is found keeps its number, and of its alpha and the one asked for now the smaller.
    """
    if known := _same_question(uses(tracking, name), use):
        return known
    tag = hidden(f"{USE}{use.key}")
    client = tracking.client
    # The sketches first: a use without them would share its items with fewer.
    for digest, sketch in use.sketches.items():
        client.set_registered_model_tag(name, hidden(f"{SKETCH}{digest}"), sketch)
    client.set_registered_model_tag(name, tag, _text(use))
    number = sum(_shares(other, use) for other in uses(tracking, name))
    numbered = dataclasses.replace(use, number=number)
    client.set_registered_model_tag(name, tag, _text(numbered))
    return numbered


def _text(use: Use) -> str:
    raw = use.to_dict()
    if use.primary == tuple(use.parts):
        # Names of many tasks would not fit twice.
        del raw["primary"]
    return json.dumps(raw)


def _same_question(counted: list[Use], use: Use) -> Use | None:
    for other in counted:
        if other.key == use.key and other.number:
            return dataclasses.replace(other, alpha=min(other.alpha, use.alpha))
    return None


def _shares(a: Use, b: Use) -> bool:
    """Whether the two opened any item that both sketches name, or the same part of a task."""
    return bool(_items(a) & _items(b))


def _items(use: Use) -> set[str]:
    digests = set(use.parts.values())
    return digests.union(*(sketch.split() for sketch in use.sketches.values()))


def level_of(use: int, alpha: float) -> float:
    """The level of one use.

    Args:
        use: 1 for the first.
        alpha: of all uses together.
    """
    if use < 1:
        raise ValueError(f"use is {use}; the first is 1")
    return alpha / (use * (use + 1))
