"""Tables and markup on the terminal's stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def console() -> Console:
    """The terminal, without guesses about what to colour."""
    from rich.console import Console

    # A name between colons is no picture.
    return Console(highlight=False, soft_wrap=False, emoji=False)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    words: int | None = None,
    ruled: bool = True,
) -> Table:
    """Rows of text under a line of titles; long cells go on below.

    Args:
        columns: titles.
        rows: strings, taken as they are, or text with a style.
        words: how many columns hold words; the others hold numbers, set to the right. None: all.
        ruled: draw a line below the titles.
    """
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD if ruled else None, pad_edge=False)
    for i, column in enumerate(columns):
        is_words = words is None or i < words
        made.add_column(column, overflow="fold", justify="left" if is_words else "right")
    for row in rows:
        made.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def escape(text: str) -> str:
    """The text, with nothing in it taken for markup."""
    from rich.markup import escape as escape_markup

    return escape_markup(text)
