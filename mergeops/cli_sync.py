"""``mergeops sync``: log what was kept on disk while the MLflow server was away."""

from __future__ import annotations

from pathlib import Path

import click

from mergeops.options import AS_JSON, CONFIG_DIR, OVERRIDES, QUIET, options, print_result
from mergeops.progress import Progress


@click.command()
@OVERRIDES
@click.option("--tracking-uri", help="In place of the server that each trial was meant for.")
@click.option("--dry-run", is_flag=True, help="Only list the trials that are kept.")
@options(CONFIG_DIR, AS_JSON, QUIET)
def sync(
    overrides: tuple[str, ...],
    tracking_uri: str | None,
    dry_run: bool,
    config_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Log trials that were kept while the server was away; nothing is merged or scored again.

    They are looked for in output.dir.
    """
    from mergeops import compose
    from mergeops import sync as syncing

    output_dir = Path(compose.compose(overrides, config_dir=config_dir).output.dir)
    results = syncing.sync(
        output_dir, Progress(quiet=quiet), tracking_uri=tracking_uri, dry_run=dry_run
    )
    if as_json:
        print_result([result.to_dict() for result in results], True)
    else:
        for result in results:
            where = f" as models:/{result.registered}, run {result.run_id}"
            detail = where if result.outcome == "logged" else f": {result.problem}"
            click.echo(f"{result.name} ({result.plan_digest[:12]}): {result.outcome}{detail}")
        if not results:
            click.echo(f"nothing is kept in {output_dir}")
    syncing.raise_if_failed(results)
