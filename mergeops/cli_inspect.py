"""The command that looks at a recipe's sources before anything is merged."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mergeops.errors import ConfigError
from mergeops.options import AS_JSON, CONFIG_DIR, OVERRIDES, QUIET, options, print_result
from mergeops.progress import Progress


@click.command()
@OVERRIDES
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="DIR", help="Write heat maps (PNG) to DIR."
)
@click.option("--no-rank", is_flag=True, help="Skip effective ranks, which take most of the time.")
@options(CONFIG_DIR, AS_JSON, QUIET)
def inspect(
    overrides: tuple[str, ...],
    plot: Path | None,
    no_rank: bool,
    config_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Will these merge, and how do their task vectors interfere? Nothing is merged or logged.

    Exit code 4 says that the recipe cannot be merged as it is.
    """
    from mergeops import compose, inspection
    from mergeops.sources import resolve

    if plot is not None and plot.exists() and not plot.is_dir():
        raise ConfigError(f"--plot {plot} is a file; name a directory")
    recipe = compose.compose(overrides, config_dir=config_dir)
    if recipe.merges:
        raise ConfigError("the recipe makes merges first; inspect the sources of each by itself")
    if not recipe.sources:
        raise ConfigError(
            "there are no sources; name a recipe (FILE.yaml or recipe=NAME) or sources.NAME.uri="
        )
    progress = Progress(quiet=quiet)
    with progress.bar("reading sources", is_bytes=True) as tick:
        resolved = resolve(
            recipe,
            cache_dir=Path(recipe.output.dir) / "cache",
            progress=lambda _label, done, total: tick(done, total),
        )
    with progress.bar("comparing weights") as tick:
        seen = inspection.inspect(recipe, resolved, with_ranks=not no_rank, progress=tick)
    plots = []
    if plot is not None:
        from mergeops.report.heat_maps import save_figures

        plots = save_figures(seen, plot)
    if as_json:
        print_result(seen.to_dict() | {"plots": [str(path) for path in plots]}, True)
    else:
        from mergeops.report.inspection_tables import print_inspection

        print_inspection(seen, plots)
    if seen.fit.refused is not None:
        sys.exit(4)
