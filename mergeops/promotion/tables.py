"""How differences and tables are written, in Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def signed(difference: float, low: float, high: float) -> str:
    """A difference with its interval, e.g. ``+0.020 [-0.010, +0.050]``."""
    return f"{difference:+.3f} {signed_interval(low, high)}"


def signed_interval(low: float, high: float) -> str:
    """The interval of a difference, e.g. ``[-0.010, +0.050]``."""
    return f"[{low:+.3f}, {high:+.3f}]"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a line break at its end."""
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
