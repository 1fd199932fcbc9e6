"""A table of text for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def plain_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int | None = 2
) -> Table:
    """Rows under a line of titles; long cells go on below.

    Args:
        columns: titles.
        rows: text, taken as it is.
        words: how many columns hold words; the others hold numbers, set to the right. None: all.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        is_words = words is None or i < words
        table.add_column(column, overflow="fold", justify="left" if is_words else "right")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
