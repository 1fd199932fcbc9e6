"""Tables and markup on the terminal's stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from mergeops.progress import new_console, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def console() -> Console:
    """The terminal, without guesses about what to colour."""
    return new_console()


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text as it is: see ``printable``."""
    click.echo(printable(text), err=err, nl=nl)


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

    return escape_markup(printable(text))
