"""``mergeops gc``: everything on the disk, what may go, and why the rest stays."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import click

from mergeops import cleanup
from mergeops.checkpoint import size_text
from mergeops.cleanup import KeptItem
from mergeops.cli.console import console, escape, table
from mergeops.cli.options import AS_JSON, CONFIG_DIR, OVERRIDES, Call, options, print_json
from mergeops.errors import ConfigError
from mergeops.store import connect_to_server


@click.command()
@OVERRIDES
@click.option("--dry-run", is_flag=True, help="Only list; delete nothing.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option(
    "--older-than",
    default="7d",
    show_default=True,
    metavar="AGE",
    help="Keep what was written since; a number and m, h, d or w.",
)
@options(CONFIG_DIR, AS_JSON)
def gc(call: Call, dry_run: bool, yes: bool, older_than: str) -> None:
    """Delete merges and interrupted work in output.dir that nothing in MLflow needs any more.

    Kept: what a version with an alias or a candidate version is made of, what a running process
    uses, parents of kept merges, activations of those, trials that wait for sync, scores and
    caches. What is made again where it is needed goes when it is old: other activations, gates,
    rows and noise.
    """
    age_s = cleanup.parse_age(older_than)
    recipe = call.recipe()
    work_dir = Path(recipe.output.dir)
    if not work_dir.is_dir():
        raise ConfigError(f"output.dir is {work_dir}, which is no directory; nothing to look at")
    tracking = connect_to_server(recipe.tracking)
    items = cleanup.look(work_dir, tracking, age_s)
    doomed = [item for item in items if item.is_garbage]
    if not call.as_json:
        print_items(items)
    if doomed and not dry_run:
        if not yes and (call.as_json or not sys.stdin.isatty()):
            raise ConfigError("nobody is there to be asked; say --yes to delete, or --dry-run")
        if not yes and not click.confirm(f"Delete {len(doomed)}?"):
            return
        items = cleanup.collect(items, work_dir, tracking, age_s)
        if not call.as_json:
            print_deleted(items, {item.path for item in doomed})
    if call.as_json:
        print_json(items)


def print_items(items: Sequence[KeptItem]) -> None:
    """One line an item, and the sums."""
    columns = ("name", "what", "size", "age", "", "because")
    rows = [
        (
            item.path.name,
            item.kind,
            size_text(item.nbytes),
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
    shared = (
        "" if total == held else f" ({size_text(total - held)} more stay, as MLflow's own files)"
    )
    out.print(
        f"{len(doomed)} of {len(items)} may go, which frees {size_text(held)}{shared}; "
        f"{size_text(sum(item.nbytes for item in items))} in all"
    )


def print_deleted(items: Sequence[KeptItem], wanted: Collection[Path]) -> None:
    """What went, and what of the wanted could not."""
    out = console()
    gone = [item for item in items if item.is_garbage]
    out.print(f"deleted {len(gone)}, {size_text(sum(item.freed for item in gone))} freed")
    for item in items:
        if item.path in wanted and not item.is_garbage:
            out.print(f"kept {escape(str(item.path))}: {escape(item.reason)}")


def age(seconds: float) -> str:
    """In the largest whole unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds:.0f}s"
