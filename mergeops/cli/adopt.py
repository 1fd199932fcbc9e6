"""The command that makes training runs ingredients: what it found, merges and misses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergeops import adoption
from mergeops.adoption import Adoption, write_recipe, write_window
from mergeops.checkpoint import size_text
from mergeops.cli.console import console, table
from mergeops.cli.options import AS_JSON, PATH, Call, options, pairs, progress_options
from mergeops.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@click.option("--experiment", required=True, help="The MLflow experiment of your training runs.")
@click.option("--filter", "filter_string", help='MLflow filter, e.g. "metrics.eval_loss < 2".')
@click.option(
    "--recipe",
    "recipe_path",
    type=PATH,
    help="Write a recipe of the mergeable runs to this YAML file.",
)
@click.option(
    "--all-checkpoints",
    metavar="RUN",
    help="With --recipe: its sources are all kept checkpoints of this run (name or id).",
)
@click.option("--register", metavar="NAME", help="Also register each as a version of NAME.")
@click.option("--dry-run", is_flag=True, help="Only list; write nothing to MLflow.")
@click.option("--path-map", multiple=True, metavar="OLD=NEW", help="Moved storage.")
@click.option("--tracking-uri", help="In place of MLFLOW_TRACKING_URI.")
@click.option("--force", is_flag=True, help="Overwrite the recipe file.")
@options(AS_JSON, progress_options)
def adopt(
    call: Call,
    experiment: str,
    recipe_path: Path | None,
    all_checkpoints: str | None,
    path_map: tuple[str, ...],
    force: bool,
    **wanted: Any,
) -> None:
    """Find the mergeable checkpoints of an experiment, whatever became of the runs.

    Each becomes a LoggedModel, an output of its run; with --register also a version of NAME. No
    run's status, params or metrics change, and no weights are copied.
    """
    if all_checkpoints is not None and recipe_path is None:
        raise ConfigError("--all-checkpoints writes a recipe; say where with --recipe FILE")
    moved = pairs("--path-map", path_map)
    with call.progress.bar("reading runs") as tick:
        adopted = adoption.adopt(experiment, path_map=moved, progress=tick, **wanted)
    if recipe_path is not None and all_checkpoints is not None:
        write_window(adopted.found, all_checkpoints, recipe_path, path_map=moved, force=force)
    elif recipe_path is not None:
        write_recipe(adopted.found, recipe_path, path_map=moved, force=force)
    call.show(adopted.rows(), lambda rows: print_adoption(adopted, rows, recipe_path))


LOSSES = ("eval loss", "best", "last")
RUNS = ("run", "status", "checkpoint", "found in", "kind", "size", *LOSSES, "group")
PIPED_WIDTH = 132
"""Columns where nobody watches: a file or a pager may be as wide as it likes."""


def print_adoption(
    adoption: Adoption, rows: list[dict[str, Any]], recipe_path: Path | None
) -> None:
    """Every run and what it left; which merge together and why the others do not; what is missing
    of those that left nothing."""
    out = console()
    if not out.is_terminal:
        out.width = max(out.width, PIPED_WIDTH)
    out.print(table(RUNS, [_run(row) for row in rows]))
    for line in _legend(rows):
        out.print(line, style="dim", soft_wrap=True)
    out.print(_groups(adoption, rows))
    for row in rows:
        if row["sharded"] and not row["problem"]:
            text = (
                f"{row['run_name']} ({row['status']}): {row['checkpoint']} is whole, in pieces "
                f"({row['sharded']}); merges read it as it is"
            )
            out.print(text, markup=False, soft_wrap=True)
        if row["problem"]:
            text = f"{row['run_name']} ({row['status']}): {row['problem']}"
            out.print(text, markup=False, soft_wrap=True)
        elif row["not_finite"]:
            text = (
                f"{row['run_name']} ({row['status']}): diverged, its last "
                f"{' and '.join(row['not_finite'])} is no number; merge its checkpoint only if it "
                "is from before"
            )
            out.print(text, markup=False, soft_wrap=True)
    new = sum(run.is_new for run in adoption.adopted)
    out.print(
        f"{len(adoption.adopted)} of {len(adoption.found)} runs left a checkpoint to merge; "
        f"{new} new in MLflow, nothing copied"
    )
    names = sorted({run.registered.split("/")[0] for run in adoption.adopted if run.registered})
    if names:
        out.print(f"registered: {len(adoption.adopted)} versions of {names[0]}", markup=False)
    if recipe_path is not None:
        out.print(f"recipe: {recipe_path}", markup=False)
    for what in ("experiment", "model"):
        if page := adoption.links.get(what):
            out.print(f"{what}: {page}", markup=False, style="dim", soft_wrap=True)


def group_name(number: int) -> str:
    """A, B, ..., Z, then A1, B1, ..."""
    turn, letter = divmod(number, 26)
    return chr(ord("A") + letter) + (str(turn) if turn else "")


def _run(row: dict[str, Any]) -> tuple[str, ...]:
    metrics = row["metrics"]
    return (
        row["run_name"],
        f"{row['status']}, silent" if row["is_silent"] else row["status"],
        _checkpoint(row),
        _place(row["found_by"].get("checkpoint")),
        row["kind"] or "-",
        _size(row["size_bytes"]),
        *(_loss(metrics.get(f"eval_loss{which}")) for which in ("", "_best", "_last")),
        "-" if row["group"] is None else group_name(row["group"]),
    )


def _checkpoint(row: dict[str, Any]) -> str:
    if row["uri"] is None:
        text = "-"
    elif row["step"] is None:
        text = "final"
    else:
        text = f"step {row['step']}"
    count = len(row["checkpoints"])
    return f"{text}, 1 of {count}" if count > 1 else text


def _legend(rows: list[dict[str, Any]]) -> list[str]:
    """What is not clear from the table itself."""
    lines = []
    if any(len(row["checkpoints"]) > 1 for row in rows):
        lines.append(
            "1 of N: the run kept N checkpoints; the best by its own metric is taken, else the "
            "newest that is whole"
        )
    if any(row["is_silent"] for row in rows):
        lines.append(
            "silent: RUNNING, but it has logged nothing for an hour; most likely it was killed"
        )
    return lines


def _groups(adoption: Adoption, rows: list[dict[str, Any]]) -> Table:
    lines = []
    for number, group in enumerate(adoption.groups):
        members = [row for row in rows if row["group"] == number]
        base_found_in = Counter(row["found_by"].get("base", "-") for row in members)
        lines.append(
            (
                group_name(number),
                str(len(members)),
                ", ".join(group.architectures) or "unknown",
                group.base or "unknown",
                ", ".join(base_found_in),
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
    return size_text(n) if n else "-"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
