"""The leaderboard of experiments."""

from __future__ import annotations

from pathlib import Path

import click

from mergeops.cli.console import console, escape
from mergeops.cli.options import AS_JSON, CONFIG_DIR, OVERRIDES, PATH, Call, options
from mergeops.report import Compared, board_table, check_page_target, write_page
from mergeops.tracking import compare_experiments, kept_answer


@click.command()
@OVERRIDES
@click.option(
    "--experiment",
    "experiments",
    multiple=True,
    help="In place of tracking.experiment; may be given several times.",
)
@click.option("--part", type=click.Choice(["dev", "confirm"]), default="dev", show_default=True)
@click.option("--reference", help="Compare with this one; default: the best parent.")
@click.option(
    "--html",
    type=PATH,
    metavar="FILE",
    help="Also write one HTML page that sorts and filters, and needs no network.",
)
@options(CONFIG_DIR, AS_JSON)
def compare(
    call: Call,
    experiments: tuple[str, ...],
    part: str,
    reference: str | None,
    html: Path | None,
) -> None:
    """Leaderboard of the parents and merges of experiments, with paired differences."""
    if html is not None:
        check_page_target(html)
    recipe = call.recipe()
    spec, names = recipe.tracking, experiments or (recipe.tracking.experiment,)
    compared = kept_answer(
        Compared,
        recipe,
        ["compare", names, part, reference],
        names,
        lambda: compare_experiments(spec, names, part, reference),
    )
    if html is not None:
        write_page(compared, html)
    call.show(compared, lambda compared: print_compared(compared, html))


def print_compared(compared: Compared, html: Path | None) -> None:
    """The leaderboard, who is not on it, and where the page is."""
    out = console()
    out.print(board_table(compared.board))
    for model in compared.left_out:
        out.print(f"left out: {escape(model.name)}, it {escape(model.reason)}", style="dim")
    for page in compared.links.values():
        out.print(escape(page), style="dim", soft_wrap=True)
    if html is not None:
        out.print(f"page: {escape(str(html))}")
