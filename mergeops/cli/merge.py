"""The commands that take a recipe file: merge it, or convert mergekit's YAML to one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from mergeops import workshop
from mergeops.checkpoint import size_text
from mergeops.cli.console import console, echo, table
from mergeops.cli.mergekit_flags import translated
from mergeops.cli.options import (
    AS_JSON,
    CONFIG_DIR,
    OVERRIDES,
    PATH,
    SHOW,
    Call,
    options,
    progress_options,
    show_recipe,
)
from mergeops.engine import WorkPlan
from mergeops.errors import ConfigError
from mergeops.recipe import Recipe, converted_text, is_written, parse_size, read_mergekit

COMPAT = click.option(
    "--compat",
    type=click.Choice(["mergekit"]),
    help="mergekit's numbers where ours differ by choice: see docs/mergekit.md.",
)


class WithMergekitFlags(click.Command):
    """A command that takes the options of mergekit-yaml, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click; says which options have no effect."""
        words, notes = translated(args)
        for note in notes:
            echo(f"mergeops: note: {note}", err=True)
        return super().parse_args(ctx, words)


@click.command(cls=WithMergekitFlags)
@click.argument("recipe_file", type=PATH)
@click.argument("out", type=PATH)
@OVERRIDES
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--seed", type=int, help="Seed of random methods, in place of the recipe's.")
@click.option("--executor", help="Who writes the files: local, ray or slurm; docs/clusters.md.")
@click.option(
    "--workers", type=click.IntRange(1), help="How many of them; the same as executor.workers=N."
)
@click.option(
    "--plan", "only_plan", is_flag=True, help="Only say what each worker will do, from headers."
)
@click.option("--bandwidth", help="Of --plan: what a worker reads or writes a second, e.g. 2GB.")
@options(COMPAT, CONFIG_DIR, SHOW, AS_JSON, progress_options)
def merge(
    call: Call,
    recipe_file: Path,
    out: Path,
    device: str,
    seed: int | None,
    executor: str | None,
    workers: int | None,
    only_plan: bool,
    bandwidth: str | None,
    compat: str | None,
) -> None:
    """Merge what RECIPE_FILE says into the directory OUT; nothing is scored or tracked.

    RECIPE_FILE is a recipe of mergeops or an unchanged mergekit YAML, with the options of
    mergekit-yaml where you are used to them.
    """
    # First: what the words say of it comes after.
    words = [*([f"executor={executor}"] if executor else []), *call.overrides]
    call = dataclasses.replace(call, overrides=tuple(words))
    more = [] if workers is None else [f"executor.workers={workers}"]
    settings = {key: said for key, said in (("seed", seed), ("compat", compat)) if said is not None}
    recipe = call.recipe(*more, recipe_file=recipe_file, **settings)
    output = dataclasses.replace(recipe.output, device=device)
    recipe = dataclasses.replace(recipe, output=output)
    if call.cfg:
        return show_recipe(recipe)
    if only_plan:
        speed = parse_size("--bandwidth", bandwidth) if bandwidth else None
        planned = workshop.plan_only(recipe, call.progress, bandwidth=speed)
        return call.show(planned, print_work)
    if bandwidth:
        raise ConfigError("--bandwidth is for --plan, which says how long a merge will take")
    merged = workshop.merge_only(recipe, out, call.progress)
    plan = merged.plan.digest[:12]
    text = f"merged into {out} (plan {plan})"
    if merged.was_there:
        text = (
            f"{out} holds this merge already (plan {plan}), with all files in their sizes; "
            f"`mergeops verify {out}` reads every byte"
        )
    if merged.adapter is not None:
        text += f"\nas an adapter of its base: {merged.adapter}"
    call.show(merged, text)


def print_work(plan: WorkPlan) -> None:
    """What each worker reads, writes and holds, and how long all of it takes."""
    out = console()
    columns = ("worker", "files", "hashes", "reads", "writes", "holds", "time")
    rows = [
        (
            str(share.worker),
            str(len(share.files)),
            *(size_text(n) for n in (share.hashes, share.reads, share.writes, share.holds)),
            duration(share.seconds),
        )
        for share in plan.shares
    ]
    out.print(table(columns, rows))
    for line in plan.notes:
        out.print(line, style="dim", soft_wrap=True)
    out.print(f"about {duration(plan.seconds)} by {len(plan.shares)} workers")


def duration(seconds: float) -> str:
    """E.g. ``4.2 s``, ``3 min 20 s`` or ``1 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@click.command()
@click.argument("config_file", type=PATH)
@click.argument("out", type=PATH, required=False)
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@options(COMPAT, AS_JSON)
def convert(
    call: Call, config_file: Path, out: Path | None, force: bool, compat: str | None
) -> None:
    """Write the recipe of a mergekit YAML to OUT, or print it."""
    if not config_file.is_file():
        raise ConfigError(f"{config_file} does not exist")
    converted = read_mergekit(config_file, compat=compat is not None)
    Recipe.from_dict(converted.recipe)
    for note in converted.notes:
        echo(f"mergeops: warning: {note}", err=True)
    text = converted_text(converted, config_file.name)
    if out is not None:
        is_there = is_written(out, text)
        if out.exists() and not (force or is_there):
            raise ConfigError(f"{out} exists; choose another name, or add --force")
        if not is_there:
            out.write_text(text, encoding="utf-8")
        text = f"{out} holds it already" if is_there else f"wrote {out}"
    call.show(dict(converted.recipe), text.rstrip("\n"))
