"""The dev and confirm parts of a task's items, decided by each item's own content.

A hash and nothing else decides: the parts do not depend on the order of the items, on their
number, or on the machine, and two copies of one item are always in the same part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mergeops.evaluate import PARTS


def item_digest(doc: Any) -> str:
    """sha256 hex of an item's canonical JSON; the order of its keys does not matter."""
    text = json.dumps(doc, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def part_ids(
    digests: Sequence[str], part: str, *, confirm_fraction: float, salt: str, limit: int | None
) -> tuple[int, ...]:
    """Positions of the items of one part, ascending.

    Args:
        digests: ``item_digest`` of every item, in the task's order.
        part: dev or confirm.
        confirm_fraction: expected share of the confirm part.
        salt: another salt gives another split.
        limit: keep this many of the part at most, the same ones in whatever order they came: those
            with the smallest hashes. A smaller limit keeps a subset of what a larger one keeps.
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; allowed: {', '.join(PARTS)}")
    salted = [hashlib.sha256(f"{salt}\n{digest}".encode()).digest() for digest in digests]
    threshold = int(confirm_fraction * 2**64)
    chosen = [
        i
        for i, hashed in enumerate(salted)
        if (int.from_bytes(hashed[:8], "big") < threshold) == (part == "confirm")
    ]
    if limit is not None:
        chosen = sorted(chosen, key=lambda i: (salted[i], i))[:limit]
    return tuple(sorted(chosen))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
