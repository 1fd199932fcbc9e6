"""The command that averages checkpoints of Megatron under their own names."""

from __future__ import annotations

from pathlib import Path

import click

from mergeops.cli.options import AS_JSON, PATH, Call, options, progress_options
from mergeops.errors import ConfigError
from mergeops.recover import Averaged, average_megatron


@click.command()
@click.argument("directories", metavar="DIR DIR...", nargs=-1, type=PATH, required=True)
@click.argument("out", metavar="OUT", type=PATH)
@click.option("--weights", metavar="W,W,...", help="One for each DIR; default: equal ones.")
@click.option("--dry-run", is_flag=True, help="Check what is there; write nothing.")
@options(AS_JSON, progress_options)
def average(
    call: Call, directories: tuple[Path, ...], out: Path, weights: str | None, dry_run: bool
) -> None:
    """Average checkpoints of Megatron-LM, Megatron-Bridge or NeMo into OUT, which they load.

    Each DIR is a folder iter_N in the format torch_dist, or a directory whose
    latest_checkpointed_iteration.txt names one. Optimizer and random states are left out.
    """
    result = average_megatron(
        directories,
        out,
        weights=_numbers(weights),
        dry_run=dry_run,
        progress=call.progress,
    )
    call.show(result.to_dict(), _text(result, dry_run))


def _numbers(text: str | None) -> list[float]:
    try:
        return [float(word) for word in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(f"--weights is {text!r}; allowed: numbers with commas") from error


def _text(result: Averaged, dry_run: bool) -> str:
    lines = [
        f"{share:.4g} x {source}"
        for source, share in zip(result.sources, result.weights, strict=True)
    ]
    what = f"{result.tensors} tensors, {result.copied} other objects from the last"
    verb = "whole; without --dry-run the average is written to" if dry_run else "averaged into"
    if result.was_there:
        return "\n".join([*lines, f"{what}; {result.out} holds it already"])
    return "\n".join([*lines, f"{what}; {verb} {result.out}"])
