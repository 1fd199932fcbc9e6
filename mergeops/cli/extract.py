"""The command that makes an adapter of a full fine-tune."""

from __future__ import annotations

from pathlib import Path

import click

from mergeops.cli.options import PATH, Call
from mergeops.cli.tool_options import show_derived, tool_options
from mergeops.derived import ToolLog, extract_by_uri
from mergeops.extraction import OTHERS, Extracted, Rank

WORST = 5
"""Matrices that are shown."""


@click.command()
@click.argument("base", metavar="BASE")
@click.argument("tuned", metavar="TUNED")
@click.argument("out", metavar="OUT", type=PATH)
@click.option("--rank", default="auto", show_default=True, metavar="auto|N", help="Of each matrix.")
@click.option(
    "--energy", default=0.95, show_default=True, help="Share of each change that auto keeps."
)
@click.option("--max-rank", default=256, show_default=True, help="What auto takes at most.")
@click.option(
    "--others",
    type=click.Choice(OTHERS),
    default=OTHERS[0],
    show_default=True,
    help="Changed norms, embeddings and heads: save them whole, leave them out, or refuse.",
)
@tool_options
def extract(
    call: Call,
    log: ToolLog,
    base: str,
    tuned: str,
    out: Path,
    rank: str,
    energy: float,
    max_rank: int,
    others: str,
) -> None:
    """Make a LoRA adapter OUT of the full fine-tune TUNED of BASE, and say what it leaves out.

    BASE and TUNED are directories or URIs as a recipe takes them. PEFT loads the result. With --log
    it is logged, and scored where evaluate.tasks=[...] names tasks.
    """
    wanted = Rank.parse(rank, energy=energy, most=max_rank)
    made = extract_by_uri(
        base, tuned, out, rank=wanted, others=others, progress=call.progress, log=log
    )
    show_derived(call, made, _text(made.result))


def _text(result: Extracted) -> str:
    lines = [f"{result.out}: {result}; {100 * result.relative_error:.3g} % of the change is lost"]
    worst = sorted(result.matrices, key=lambda matrix: -matrix.relative_error)[:WORST]
    lines += [
        f"  {matrix.module}: rank {matrix.rank}, {100 * matrix.relative_error:.3g} % lost"
        for matrix in worst
    ]
    if result.saved:
        lines.append(f"saved whole: {', '.join(result.saved)}")
    if result.left_out:
        lines.append(f"left as the base's: {', '.join(result.left_out)}")
    if result.was_there:
        lines.append("it was there already")
    return "\n".join(lines)
