"""The leaderboard in characters: for the terminal and as Markdown."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergeops.report.leaderboard import Leaderboard, Row

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


_SUMMARY = ("#", "model", "kind", "all tasks", "difference")
_TEXTS = ("model", "kind")
# Fewest characters a column needs, and what stands between two columns.
_ROOM = {"#": 2, "model": 18, "kind": 6, "all tasks": 20, "difference": 23}
_SCORE = 20
_GAP = 2
_STYLES = {"merge": "bold cyan", "source": "", "base": "dim"}


def board_table(board: Leaderboard, width: int | None = None) -> RenderableType:
    """Merges stand out, differences beyond chance are coloured.

    Args:
        width: columns of the terminal; None asks it. Where all columns do not fit, the tasks follow
            in tables of their own.
    """
    from rich.console import Group
    from rich.text import Text

    width = width or shutil.get_terminal_size().columns
    whole = [*_SUMMARY, *board.groups, *board.tasks]
    if _room(whole) <= width:
        parts = [_drawn(board, whole)]
    else:
        parts = [_drawn(board, _SUMMARY)]
        waiting = [*board.groups, *board.tasks]
        while waiting:
            shown = ["#", "model", waiting.pop(0)]
            while waiting and _room([*shown, waiting[0]]) <= width:
                shown.append(waiting.pop(0))
            parts.append(_drawn(board, shown))
    return Group(*parts, Text(_caption(board), style="dim"))


def board_markdown(board: Leaderboard) -> str:
    """A Markdown table with all columns and a line about how to read it."""
    headings = [*_SUMMARY, *board.groups, *board.tasks]
    rule = ["---" if heading in _TEXTS else "---:" for heading in headings]
    texts = [_texts(board, row) for row in board.rows]
    cells = [[_escaped(text[heading]) for heading in headings] for text in texts]
    lines = [[_escaped(heading) for heading in headings], rule, *cells]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{_caption(board)}\n"


def _drawn(board: Leaderboard, headings: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        table.add_column(
            heading,
            justify="left" if heading in _TEXTS else "right",
            overflow="fold",
            # Only names may be broken over lines.
            no_wrap=heading != "model",
            min_width=_ROOM.get(heading),
        )
    for row in board.rows:
        texts = _texts(board, row)
        styles = {"difference": _difference_style(row)}
        cells = [Text(texts[heading], styles.get(heading, "")) for heading in headings]
        table.add_row(*cells, style=_STYLES[row.kind])
    return table


def _difference_style(row: Row) -> str:
    d = row.difference
    if d is not None and d.low > 0:
        return "green"
    return "red" if d is not None and d.high < 0 else ""


def _texts(board: Leaderboard, row: Row) -> dict[str, str]:
    """The cells of a row by their headings."""
    difference = "reference" if row.name == board.reference else ""
    return {
        **{name: str(score) for name, score in {**row.tasks, **row.groups}.items()},
        "#": str(row.rank),
        "model": row.name,
        "kind": row.kind,
        "all tasks": str(row.estimate),
        "difference": str(row.difference) if row.difference else difference,
    }


def _caption(board: Leaderboard) -> str:
    text = (
        f"{board.part} part, {board.rows[0].n} items. All tasks: {board.pooled_as}. Scores "
        "are shown with 95 % intervals."
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
