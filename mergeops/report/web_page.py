"""A comparison as one HTML file: sorts, filters, and loads nothing, so it can be mailed and kept.

Names come from runs that anybody may have named. All text is escaped, and the page's own policy
lets the browser run nothing but its one script, known by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from mergeops.checkpoint import replace_with
from mergeops.errors import ConfigError
from mergeops.report.leaderboard import KINDS, Compared, Leaderboard, LeftOut, Row
from mergeops.version import __version__

MARK = "<!doctype html>\n<!-- mergeops compare -->\n"
"""How every such page begins: only a file of this kind is overwritten."""
WIDTH, HEIGHT = 170, 12
"""Of an interval, in pixels."""


def check_page_target(path: Path) -> None:
    """Refuse, before any work, a file that must not be written.

    Raises:
        ConfigError: a directory, a file that is no such page, or no directory to put it in.
    """
    if path.is_dir():
        raise ConfigError(f"--html is {path}, a directory; name a file, e.g. {path}/compare.html")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--html is {path}, but there is no directory {path.parent}")
    if path.exists():
        with path.open("rb") as file:
            if file.read(len(MARK)) != MARK.encode():
                raise ConfigError(
                    f"--html is {path}, which is no page of mergeops compare and would be "
                    "overwritten; name another file"
                )


def write_page(compared: Compared, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    text = page(compared)
    try:
        with replace_with(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html is {path}, which cannot be written: {error.strerror}") from error


def page(compared: Compared) -> str:
    """The whole document."""
    board = compared.board
    style, script = _packaged("page.css"), _packaged("page.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = f"Models of {', '.join(compared.experiments)}"
    return "\n".join(
        [
            f"{MARK}<html lang='en'><head><meta charset='utf-8'>",
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(_how_to_read(board))}</p>",
            _filters(compared),
            "<div class='scroll'><table><thead><tr>",
            *_headings(compared),
            "</tr></thead><tbody>",
            *_rows(compared),
            "</tbody></table></div>",
            _left_out(compared.left_out),
            f"<footer>mergeops {escape(__version__)}</footer>",
            f"<script>{script}</script></body></html>",
            "",
        ]
    )


def _how_to_read(board: Leaderboard) -> str:
    tasks = ", ".join(board.tasks)
    text = (
        f"{board.part} part, {board.rows[0].n} items of {tasks}. All tasks: {board.pooled_as}. "
        "Scores are shown with 95 % intervals."
    )
    if board.reference is not None:
        text += (
            f" Differences to {board.reference} are paired by item: two scores whose intervals "
            "overlap can still differ clearly. p is one-sided, uncorrected for the number of "
            "models looked at."
        )
    if board.left_out:
        text += f" Not every model was scored on: {', '.join(board.left_out)}."
    return text


def _filters(compared: Compared) -> str:
    present = {row.kind for row in compared.board.rows}
    kinds = "".join(
        f"<label><input type='checkbox' name='kind' value='{kind}' checked>{kind}</label>"
        for kind in reversed(KINDS)
        if kind in present
    )
    experiments = ""
    if len(compared.experiments) > 1:
        choices = "".join(f"<option>{escape(name)}</option>" for name in compared.experiments)
        experiments = (
            "<label>experiment <select id='experiment'><option value=''>all</option>"
            f"{choices}</select></label>"
        )
    return (
        "<div class='filters'><input type='search' id='words' placeholder='model name' "
        f"aria-label='model name'>{kinds}{experiments}"
        "<label><input type='checkbox' id='beyond'>only differences beyond chance</label>"
        "<span id='shown' role='status'></span></div>"
    )


def _headings(compared: Compared) -> list[str]:
    several = len(compared.experiments) > 1
    down, up = "descending", "ascending"
    titles = [("#", up, False), ("model", up, True)]
    titles += [("experiment", up, True)] if several else []
    titles += [("kind", up, True), ("all tasks", down, False)]
    if compared.board.reference is not None:
        titles += [("difference", down, False), ("p", up, False), ("wins : losses", down, False)]
    titles += [(task, down, False) for task in compared.board.tasks]
    cells = []
    for text, first, is_text in titles:
        sort = " aria-sort='ascending'" if text == "#" else ""
        style = " class='text'" if is_text else ""
        cells.append(
            f"<th scope='col' data-first='{first}'{sort}{style}>"
            f"<button type='button'>{escape(text)}</button></th>"
        )
    return cells


def _rows(compared: Compared) -> list[str]:
    board = compared.board
    scores = _scale([(row.low, row.pooled, row.high) for row in board.rows])
    compared_rows = [row.difference for row in board.rows if row.difference]
    ends = [(d.low, d.difference, d.high) for d in compared_rows]
    differences = _scale([(0.0, 0.0, 0.0), *ends])
    return [_row(compared, row, scores, differences) for row in board.rows]


def _row(
    compared: Compared,
    row: Row,
    scores: tuple[float, float],
    differences: tuple[float, float],
) -> str:
    origin, d = row.origin, row.difference
    experiment = escape(origin.experiment) if origin else ""
    name = escape(row.name)
    shown = f"<a href='{escape(origin.url)}'>{name}</a>" if origin and origin.url else name
    title = f" title='run {escape(origin.run_id)}'" if origin else ""
    cells = [
        _cell(row.rank, str(row.rank)),
        f"<th scope='row' data-value='{name}'{title}>{shown}</th>",
    ]
    if len(compared.experiments) > 1:
        cells.append(f"<td class='text' data-value='{experiment}'>{experiment}</td>")
    cells.append(f"<td class='text kind' data-value='{row.kind}'>{row.kind}</td>")
    drawn = _interval(row.pooled, row.low, row.high, scores, None)
    cells.append(_cell(row.pooled, _with_interval(str(row.estimate)) + drawn))
    judgement = ""
    if d is not None:
        if d.low > 0:
            judgement = "good"
        elif d.high < 0:
            judgement = "bad"
        shown = _with_interval(str(d))
        drawn = _interval(d.difference, d.low, d.high, differences, 0.0)
        cells += [
            _cell(d.difference, f"<span class='{judgement}'>{shown}</span>{drawn}"),
            _cell(d.p_value, f"{d.p_value:.3g}"),
            _cell(d.wins - d.losses, f"{d.wins} : {d.losses}"),
        ]
    elif compared.board.reference is not None:
        # The reference differs from itself by nothing, and is sorted so.
        cells += [_cell(0.0, "reference"), _cell(math.nan, ""), _cell(0.0, "")]
    for task in compared.board.tasks:
        score = row.tasks[task]
        cells.append(_cell(score.value, _with_interval(str(score)), "task"))
    beyond = "yes" if judgement else "no"
    return (
        f"<tr class='{row.kind}' data-kind='{row.kind}' data-name='{name}' data-beyond='{beyond}' "
        f"data-experiment='{experiment}'>{''.join(cells)}</tr>"
    )


def _left_out(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return ""
    lines = "".join(
        f"<li>{escape(model.name)} ({escape(model.experiment)}): {escape(model.reason)}</li>"
        for model in left_out
    )
    return f"<h2>Left out</h2><ul>{lines}</ul>"


def _cell(value: float, content: str, style: str = "") -> str:
    return (
        f"<td class='{style}' data-value='{value if math.isfinite(value) else ''}'>{content}</td>"
    )


def _with_interval(score: str) -> str:
    """A value, and its interval in another colour."""
    value, space, interval = score.partition(" ")
    return f"{value} <span class='error'>{interval}</span>" if space else value


def _interval(
    value: float, low: float, high: float, between: tuple[float, float], axis: float | None
) -> str:
    start, end = between

    def x(at: float) -> str:
        return f"{(min(max(at, start), end) - start) / (end - start) * WIDTH:.1f}"

    middle = HEIGHT / 2
    line = ""
    if axis is not None:
        line = f"<line class='axis' x1='{x(axis)}' x2='{x(axis)}' y1='-2' y2='{HEIGHT + 2}'/>"
    if value < start or value > end:
        # Off the scale, which one diverged run must not stretch for all: an arrow at the edge.
        at, tip = (0, -7) if value < start else (WIDTH, 7)
        mark = f"<path d='M{at + tip},{middle:g} l{-tip},-4 v8 z' stroke='none'/>"
    else:
        mark = (
            f"<line class='span' x1='{x(low)}' x2='{x(high)}' y1='{middle:g}' y2='{middle:g}'/>"
            f"<circle cx='{x(value)}' cy='{middle:g}' r='4' stroke='none'/>"
        )
    return (
        f"<svg width='{WIDTH}' height='{HEIGHT}' role='img' "
        f"aria-label='{value:.3f}, interval {low:.3f} to {high:.3f}'>{line}{mark}</svg>"
    )


def _scale(intervals: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """From the lowest to the highest end of all intervals but outliers, by Tukey's fences."""
    values = sorted(value for _, value, _ in intervals)
    q1, q3 = values[len(values) // 4], values[-1 - len(values) // 4]
    fence = 1.5 * (q3 - q1)
    ends = [
        end
        for low, value, high in intervals
        if q1 - fence <= value <= q3 + fence
        for end in (low, value, high)
        if math.isfinite(end)
    ]
    low, high = min(ends), max(ends)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _packaged(name: str) -> str:
    return resources.files("mergeops.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
