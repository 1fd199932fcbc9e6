"""``mergeops lineage`` and ``mergeops gc``: where a model comes from, and what nobody needs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mergeops.errors import ConfigError
from mergeops.options import AS_JSON, CONFIG_DIR, OVERRIDES, options, print_result


@click.command()
@click.argument("model", metavar="URI")
@OVERRIDES
@click.option(
    "--svg", type=click.Path(path_type=Path), metavar="FILE", help="Also draw the tree, as SVG."
)
@click.option(
    "--png", type=click.Path(path_type=Path), metavar="FILE", help="Also draw the tree, as PNG."
)
@options(CONFIG_DIR, AS_JSON)
def lineage(
    model: str,
    overrides: tuple[str, ...],
    svg: Path | None,
    png: Path | None,
    config_dir: Path | None,
    as_json: bool,
) -> None:
    """The family tree of a model, back to its training runs and bases.

    URI is models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/ID.
    """
    from mergeops import compose
    from mergeops.lineage import find_family
    from mergeops.report import family
    from mergeops.tracking.connection import connect_to_server

    for option, path in (("--svg", svg), ("--png", png)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"{option} is {path}; name a file in a directory that exists")
    tracking = compose.compose(overrides, config_dir=config_dir).tracking
    found = find_family(connect_to_server(tracking), model)
    if svg is not None:
        family.write_svg(found, svg)
    if png is not None:
        family.write_png(found, png)
    if as_json:
        return print_result(found.to_dict(), True)
    family.print_tree(found)


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
def gc(
    overrides: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    older_than: str,
    config_dir: Path | None,
    as_json: bool,
) -> None:
    """Delete merges and interrupted work in output.dir that nothing in MLflow needs any more.

    Kept: what a version with an alias or a candidate version is made of, what a running process
    uses, parents of kept merges, trials that wait for sync, scores and caches.
    """
    from mergeops import compose, garbage
    from mergeops.report import disk_table
    from mergeops.tracking.connection import connect_to_server

    age_s = garbage.parse_age(older_than)
    recipe = compose.compose(overrides, config_dir=config_dir)
    work_dir = Path(recipe.output.dir)
    if not work_dir.is_dir():
        raise ConfigError(f"output.dir is {work_dir}, which is no directory; nothing to look at")
    tracking = connect_to_server(recipe.tracking)
    items = garbage.look(work_dir, tracking, age_s)
    doomed = [item for item in items if item.is_garbage]
    if not as_json:
        disk_table.print_items(items)
    if doomed and not dry_run:
        if not yes and (as_json or not sys.stdin.isatty()):
            raise ConfigError("nobody is there to be asked; say --yes to delete, or --dry-run")
        if not yes and not click.confirm(f"Delete {len(doomed)}?"):
            return
        items = garbage.collect(items, work_dir, tracking, age_s)
        if not as_json:
            disk_table.print_deleted(items, {item.path for item in doomed})
    if as_json:
        print_result([item.to_dict() for item in items], True)
