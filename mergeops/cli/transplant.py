"""The command that gives a model the vocabulary of another."""

from __future__ import annotations

from pathlib import Path

import click

from mergeops.cli.options import PATH, Call
from mergeops.cli.tool_options import show_derived, tool_options
from mergeops.derived import ToolLog, transplant_by_uri
from mergeops.transplant import METHODS


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
@tool_options
def transplant(
    call: Call,
    log: ToolLog,
    model: str,
    donor: str,
    out: Path,
    method: str,
    k: int,
    device: str,
) -> None:
    """Write MODEL with the vocabulary and tokenizer of DONOR into OUT.

    MODEL and DONOR are directories or URIs as a recipe takes them. With --log the result is logged,
    and scored where evaluate.tasks=[...] names tasks.
    """
    done = transplant_by_uri(
        model, donor, out, method=method, k=k, device=device, progress=call.progress, log=log
    )
    made = done.result
    verb = "holds already" if made.was_there else "holds"
    text = (
        f"{out} {verb} {model} with {made.rows} rows: {made.shared} of tokens that both have, "
        f"{made.new} made by {method} (plan {made.plan.digest[:12]})"
    )
    show_derived(call, done, text)
