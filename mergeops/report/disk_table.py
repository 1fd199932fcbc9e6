"""What ``mergeops gc`` shows: everything on the disk, what may go, and why the rest stays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mergeops.report.console import console, escape, table

if TYPE_CHECKING:
    from mergeops.garbage import Item


def print_items(items: Sequence[Item]) -> None:
    """One line an item, and the sums."""
    columns = ("name", "what", "size", "age", "", "because")
    rows = [
        (
            item.path.name,
            item.kind,
            size(item.nbytes),
            age(item.age_s),
            "delete" if item.is_garbage else "keep",
            item.reason,
        )
        for item in items
    ]
    out = console()
    out.print(table(columns, rows))
    doomed = [item for item in items if item.is_garbage]
    total, held = sum(item.nbytes for item in doomed), sum(item.freed for item in doomed)
    shared = "" if total == held else f" ({size(total - held)} more stay, as MLflow's own files)"
    out.print(
        f"{len(doomed)} of {len(items)} may go, which frees {size(held)}{shared}; "
        f"{size(sum(item.nbytes for item in items))} in all"
    )


def print_deleted(items: Sequence[Item], wanted: Collection[Path]) -> None:
    """What went, and what of the wanted could not."""
    out = console()
    gone = [item for item in items if item.is_garbage]
    out.print(f"deleted {len(gone)}, {size(sum(item.freed for item in gone))} freed")
    for item in items:
        if item.path in wanted and not item.is_garbage:
            out.print(f"kept {escape(str(item.path))}: {escape(item.reason)}")


def size(nbytes: int) -> str:
    """In decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} B"


def age(seconds: float) -> str:
    """In the largest whole unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds:.0f}s"
