"""The command that puts together what a sharded training left."""

from __future__ import annotations

from pathlib import Path

import click

from mergeops.cli.options import AS_JSON, PATH, Call, options, progress_options
from mergeops.recover import KINDS, Recovered
from mergeops.recover import recover as put_together
from mergeops.sources import locate


@click.command()
@click.argument("directory", metavar="DIR")
@click.argument("out", metavar="OUT", type=PATH)
@click.option("--base", metavar="DIR|URI", help="The model that was trained: names are checked.")
@click.option("--dry-run", is_flag=True, help="Say what is there; write nothing.")
@options(AS_JSON, progress_options)
def recover(call: Call, directory: str, out: Path, base: str | None, dry_run: bool) -> None:
    """Put together the weights that a sharded training left in DIR, as a Hugging Face directory
    OUT.

    DIR is a checkpoint of FSDP, DeepSpeed ZeRO, verl, torchtitan or NeMo Automodel, whole or not,
    or the URI of one: runs:/ID/checkpoint-4, s3://BUCKET/PATH.
    """
    place = None if base is None else _located(call, base)
    found = _located(call, directory)
    result = put_together(found, out, base=place, dry_run=dry_run, progress=call.progress)
    call.show(result.to_dict(), _text(result, dry_run))


def _located(call: Call, where: str) -> Path:
    with call.progress.bar(f"fetching {where}", is_bytes=True) as tick:
        return locate(where, progress=lambda _what, done, total: tick(done, total))


def _text(result: Recovered, dry_run: bool) -> str:
    found = result.found
    size = 0 if found.shards is None else found.shards.bytes
    facts = [KINDS[found.kind][0]]
    facts += [] if found.step is None else [f"step {found.step}"]
    facts += [] if found.world_size is None else [f"{found.world_size} processes"]
    what = "a LoRA adapter" if found.is_adapter else "a model"
    count = 0 if found.shards is None else len(found.shards.tensors)
    lines = [f"{found.path}: {', '.join(facts)}; {what} of {count} tensors, {size / 1e9:.3g} GB"]
    lines += [f"note: {note}" for note in result.notes]
    if result.was_there:
        lines.append(f"{result.out} holds it already")
    elif dry_run:
        lines.append(f"whole; without --dry-run it is written to {result.out}")
    else:
        lines.append(f"recovered into {result.out} (weights {str(result.sha256)[:12]})")
    return "\n".join(lines)
