"""The dev and confirm parts of a task's items, decided by each item's own content.

A hash and nothing else decides: the parts do not depend on the order of the items or on the
machine. Items that ask the same, and those of one cluster, are always in the same part.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from mergeops.scores import PARTS


def item_digest(doc: Any) -> str:
    """sha256 hex of an item's canonical JSON; the order of its keys does not matter."""
    text = json.dumps(doc, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def split_units(
    digests: Sequence[str], questions: Sequence[str], clusters: Sequence[str | None]
) -> list[str]:
    """What each item is split by; items with equal units are in the same part.

    Args:
        digests: ``item_digest`` of every item.
        questions: digests of what is asked; equal ones may come from items that differ in an id.
        clusters: digests of what the items share; None for an item in no cluster.

    Returns:
        The cluster; without one the least ``item_digest`` of the items that ask the same, so that
        another prompt for the same items leaves each in its part.
    """
    least: dict[str, str] = {}
    for digest, question in zip(digests, questions, strict=True):
        least[question] = min(least.get(question, digest), digest)
    return [
        least[question] if cluster is None else cluster
        for question, cluster in zip(questions, clusters, strict=True)
    ]


def part_ids(
    digests: Sequence[str],
    part: str,
    *,
    units: Sequence[str],
    confirm_fraction: float,
    salt: str,
    limit: float | None,
) -> tuple[int, ...]:
    """Positions of the items of one part, ascending.

    Args:
        digests: ``item_digest`` of every item, in the task's order.
        part: dev or confirm.
        units: ``split_units`` of the items.
        confirm_fraction: expected share of the confirm part.
        salt: another salt gives another split.
        limit: keep this many of the part at most, or below 1 this share of it, rounded up: the
            same ones in whatever order they came: those with the smallest hashes. A smaller
            limit keeps a subset of what a larger one keeps.
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; allowed: {', '.join(PARTS)}")
    threshold = int(confirm_fraction * 2**64)
    chosen = [
        i
        for i, unit in enumerate(units)
        if (int.from_bytes(_salted(salt, unit)[:8], "big") < threshold) == (part == "confirm")
    ]
    if limit is not None:
        kept = math.ceil(limit * len(chosen)) if limit < 1 else int(limit)
        chosen = sorted(chosen, key=lambda i: (_salted(salt, digests[i]), i))[:kept]
    return tuple(sorted(chosen))


def _salted(salt: str, digest: str) -> bytes:
    return hashlib.sha256(f"{salt}\n{digest}".encode()).digest()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
