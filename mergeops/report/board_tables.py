"""The leaderboard in characters: for the terminal and as Markdown."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from mergeops.report.leaderboard import Leaderboard, Row

_SUMMARY = ("#", "model", "kind", "all tasks", "difference")
_TEXTS = ("model", "kind")
# Fewest characters a column needs, and what stands between two columns.
_ROOM = {"#": 2, "model": 18, "kind": 6, "all tasks": 20, "difference": 23}
_SCORE = 20
_GAP = 2
_STYLES = {"merge": "bold cyan", "source": "", "base": "dim"}


def terminal(board: Leaderboard, width: int | None = None) -> RenderableType:
    """Merges stand out, differences beyond chance are coloured.

    Args:
        width: columns of the terminal; None asks it. Where all columns do not fit, the tasks follow
            in tables of their own.
    """
    from rich.console import Group
    from rich.text import Text

    width = width or shutil.get_terminal_size().columns
    whole = [*_SUMMARY, *board.tasks]
    if _room(whole) <= width:
        parts = [_drawn(board, whole)]
    else:
        parts = [_drawn(board, _SUMMARY)]
        waiting = list(board.tasks)
        while waiting:
            shown = ["#", "model", waiting.pop(0)]
            while waiting and _room([*shown, waiting[0]]) <= width:
                shown.append(waiting.pop(0))
            parts.append(_drawn(board, shown))
    return Group(*parts, Text(_caption(board), style="dim"))


def markdown(board: Leaderboard) -> str:
    """A Markdown table with all columns and a line about how to read it."""
    headings = [*_SUMMARY, *board.tasks]
    rule = ["---" if heading in _TEXTS else "---:" for heading in headings]
    cells = [[_escaped(_text(board, row, h)) for h in headings] for row in board.rows]
    lines = [[_escaped(heading) for heading in headings], rule, *cells]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{_caption(board)}\n"


def _drawn(board: Leaderboard, headings: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        justify: Literal["left", "right"] = "left" if heading in _TEXTS else "right"
        # Only names may be broken over lines.
        table.add_column(
            heading,
            justify=justify,
            overflow="fold",
            no_wrap=heading != "model",
            min_width=_ROOM.get(heading),
        )
    for row in board.rows:
        cells = []
        for heading in headings:
            d = row.difference if heading == "difference" else None
            style = "green" if d and d.low > 0 else "red" if d and d.high < 0 else ""
            cells.append(Text(_text(board, row, heading), style=style))
        table.add_row(*cells, style=_STYLES[row.kind])
    return table


def _text(board: Leaderboard, row: Row, heading: str) -> str:
    """One cell."""
    d = row.difference
    if heading == "#":
        return str(row.rank)
    if heading == "model":
        return row.name
    if heading == "kind":
        return row.kind
    if heading == "all tasks":
        return str(row.estimate)
    if heading == "difference":
        if d is None:
            return "reference" if row.name == board.reference else ""
        return f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
    return str(row.tasks[heading])


def _caption(board: Leaderboard) -> str:
    text = (
        f"{board.part} part, {board.rows[0].n} items. All tasks: mean over items. Scores are shown "
        "with 95 % intervals."
    )
    if board.reference is not None:
        text += f" Differences to {board.reference} are paired by item, and so are their intervals."
    if board.left_out:
        text += f" Not every model was scored on: {', '.join(board.left_out)}."
    return text


def _room(headings: Sequence[str]) -> int:
    """Characters that a table with these columns needs at least."""
    return sum(_ROOM.get(heading, max(_SCORE, len(heading))) + _GAP for heading in headings)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
