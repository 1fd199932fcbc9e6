"""The command that makes dense models the experts of one."""

from __future__ import annotations

from pathlib import Path

import click

from mergeops.cli.options import PATH, Call
from mergeops.cli.tool_options import show_derived, tool_options
from mergeops.derived import ToolLog, mixture_of


@click.command()
@click.argument("recipe_file", metavar="RECIPE", type=PATH)
@click.argument("out", metavar="OUT", type=PATH)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of gates.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@tool_options
def moe(call: Call, log: ToolLog, recipe_file: Path, out: Path, seed: int, device: str) -> None:
    """Make the dense models of RECIPE the experts of one, OUT, that sends each token to a few.

    RECIPE is an unchanged YAML of mergekit-moe. With --log the result is logged, and scored where
    evaluate.tasks=[...] names tasks.
    """
    done = mixture_of(recipe_file, out, seed=seed, device=device, progress=call.progress, log=log)
    made = done.result
    plan = made.plan.digest[:12]
    verb = "holds already" if made.was_there else "holds"
    text = (
        f"{out} {verb} {made.model_type} with {made.experts} experts, {made.experts_per_token} a "
        f"token (plan {plan})"
    )
    show_derived(call, done, text)
