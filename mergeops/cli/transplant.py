"""The command that gives a model the vocabulary of another."""

from __future__ import annotations

from pathlib import Path

import click

from mergeops.cli.options import AS_JSON, PATH, Call, options, progress_options
from mergeops.transplant import METHODS, transplant_by_uri


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("donor", metavar="DONOR")
@click.argument("out", metavar="OUT", type=PATH)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default=METHODS[0],
    show_default=True,
    help="Tokens that MODEL lacks: as sparse sums of those that both have, or as the mean of the "
    "pieces that MODEL cuts them into.",
)
@click.option("--k", default=16, show_default=True, help="Tokens in a sum, of omp.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@options(AS_JSON, progress_options)
def transplant(
    call: Call, model: str, donor: str, out: Path, method: str, k: int, device: str
) -> None:
    """Write MODEL with the vocabulary and tokenizer of DONOR into OUT.

    MODEL and DONOR are directories or URIs as a recipe takes them.
    """
    made = transplant_by_uri(
        model, donor, out, method=method, k=k, device=device, progress=call.progress
    )
    verb = "holds already" if made.was_there else "holds"
    text = (
        f"{out} {verb} {model} with {made.rows} rows: {made.shared} of tokens that both have, "
        f"{made.new} made by {method} (plan {made.plan.digest[:12]})"
    )
    call.show(made, text)
