"""``mergeops sync``: log what was kept on disk while the MLflow server was away."""

from __future__ import annotations

from pathlib import Path

import click

from mergeops.cli.options import AS_JSON, CONFIG_DIR, OVERRIDES, Call, options, progress_options
from mergeops.tracking import raise_if_failed, sync_trials


@click.command()
@OVERRIDES
@click.option("--tracking-uri", help="In place of the server that each trial was meant for.")
@click.option(
    "--workspace",
    help='In place of the workspace that each was meant for; "" is the server\'s default.',
)
@click.option("--dry-run", is_flag=True, help="Only list the trials that are kept.")
@options(CONFIG_DIR, AS_JSON, progress_options)
def sync(call: Call, tracking_uri: str | None, workspace: str | None, dry_run: bool) -> None:
    """Log trials that were kept while the server was away; nothing is merged or scored again.

    They are looked for in output.dir.
    """
    output_dir = Path(call.recipe().output.dir)
    results = sync_trials(
        output_dir,
        call.progress,
        tracking_uri=tracking_uri,
        workspace=workspace,
        dry_run=dry_run,
    )
    lines = []
    for result in results:
        version = f" as models:/{result.registered}" if result.registered else ""
        where = f"{version}, run {result.run_id} at {result.server}"
        meant = f" for {result.server}" if result.server else ""
        detail = where if result.outcome == "logged" else f"{meant}: {result.problem}"
        lines.append(f"{result.name} ({result.plan_digest[:12]}): {result.outcome}{detail}")
    call.show(results, "\n".join(lines) or f"nothing is kept in {output_dir}")
    raise_if_failed(results)
