"""What adopt found, on the terminal: the runs, what merges with what, and what is missing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.report.console import console, table

if TYPE_CHECKING:
    from rich.table import Table

    from mergeops.sources.adopt import Adoption

LOSSES = ("eval loss", "best", "last")
RUNS = ("run", "status", "checkpoint", "found in", "kind", "size", *LOSSES, "group")
PIPED_WIDTH = 120
"""Columns where nobody watches: a file or a pager may be as wide as it likes."""


def print_adoption(adoption: Adoption, recipe_path: Path | None) -> None:
    """Every run and what it left; which merge together and why the others do not; what is missing
    of those that left nothing."""
    out = console()
    if not out.is_terminal:
        out.width = max(out.width, PIPED_WIDTH)
    rows = adoption.rows()
    out.print(table(RUNS, [_run(row) for row in rows]))
    out.print(_groups(adoption, rows))
    for row in rows:
        if row["problem"]:
            text = f"{row['run_name']} ({row['status']}): {row['problem']}"
            out.print(text, markup=False, soft_wrap=True)
    new = sum(one.is_new for one in adoption.adopted)
    out.print(
        f"{len(adoption.adopted)} of {len(adoption.found)} runs left a checkpoint to merge; "
        f"{new} new in MLflow, nothing copied"
    )
    names = sorted({one.registered.split("/")[0] for one in adoption.adopted if one.registered})
    if names:
        out.print(f"registered: {len(adoption.adopted)} versions of {names[0]}", markup=False)
    if recipe_path is not None:
        out.print(f"recipe: {recipe_path}", markup=False)


def group_name(number: int) -> str:
    """A, B, ..., Z, then A1, B1, ..."""
    turn, letter = divmod(number, 26)
    return chr(ord("A") + letter) + (str(turn) if turn else "")


def _run(row: dict[str, Any]) -> tuple[str, ...]:
    step, beside, metrics = row["step"], len(row["checkpoints"]), row["metrics"]
    checkpoint = "-" if row["uri"] is None else "final" if step is None else f"step {step}"
    return (
        row["run_name"],
        row["status"],
        f"{checkpoint}, 1 of {beside}" if beside > 1 else checkpoint,
        _place(row["found_by"].get("checkpoint")),
        row["kind"] or "-",
        _size(row["size_bytes"]),
        *(_loss(metrics.get(f"eval_loss{which}")) for which in ("", "_best", "_last")),
        "-" if row["group"] is None else group_name(row["group"]),
    )


def _groups(adoption: Adoption, rows: list[dict[str, Any]]) -> Table:
    lines = []
    for number, group in enumerate(adoption.groups):
        members = [row for row in rows if row["group"] == number]
        said = Counter(row["found_by"].get("base", "-") for row in members)
        lines.append(
            (
                group_name(number),
                str(len(members)),
                ", ".join(group.architectures) or "unknown",
                group.base or "unknown",
                ", ".join(said),
                group.reason or "",
            )
        )
    columns = ["group", "runs", "architecture", "base", "base found in", "not with A, since it"]
    if len(lines) == 1:
        columns.pop()
    return table(columns, [line[: len(columns)] for line in lines])


def _place(found_by: str | None) -> str:
    place = (found_by or "-").split(";")[0]
    return "LoggedModel" if place.startswith("LoggedModel ") else place


def _size(n: int) -> str:
    return "-" if not n else f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
