"""The command that rehashes a merged checkpoint."""

from __future__ import annotations

import sys

import click

from mergeops.checkpoint import verify_checkpoint
from mergeops.cli.options import AS_JSON, URIS, Call, options, progress_options
from mergeops.sources import locate


@click.command()
@click.argument("where", metavar="DIR|URI", shell_complete=URIS)
@options(AS_JSON, progress_options)
def verify(call: Call, where: str) -> None:
    """Rehash a merged checkpoint and name every file that differs from its manifest."""
    with call.progress.bar(f"fetching {where}", is_bytes=True) as tick:
        path = locate(where, progress=lambda _what, done, total: tick(done, total))
    with call.progress.bar(f"hashing {path.name}", is_bytes=True) as tick:
        problems = verify_checkpoint(path, tick)
    text = "\n".join(problems) or f"{path}: every file is as its manifest says"
    call.show({"checkpoint": str(path), "problems": problems}, text)
    if problems:
        sys.exit(4)
