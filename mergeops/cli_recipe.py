"""The commands that take a recipe file: merge it, or convert mergekit's YAML to one."""

from __future__ import annotations

from pathlib import Path

import click

from mergeops.errors import ConfigError
from mergeops.options import (
    AS_JSON,
    CONFIG_DIR,
    OVERRIDES,
    QUIET,
    SHOW,
    options,
    print_result,
    show_recipe,
)
from mergeops.progress import Progress

COMPAT = click.option(
    "--compat",
    type=click.Choice(["mergekit"]),
    help="mergekit's numbers where ours differ by choice: see docs/mergekit.md.",
)


class WithMergekitFlags(click.Command):
    """A command that takes the options of mergekit-yaml, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click; says which options have no effect."""
        from mergeops.mergekit_flags import translated

        words, notes = translated(args)
        for note in notes:
            click.echo(f"mergeops: note: {note}", err=True)
        return super().parse_args(ctx, words)


@click.command(cls=WithMergekitFlags)
@click.argument("recipe_file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--seed", type=int, help="Seed of random methods, in place of the recipe's.")
@options(COMPAT, CONFIG_DIR, SHOW, AS_JSON, QUIET)
def merge(
    recipe_file: Path,
    out: Path,
    overrides: tuple[str, ...],
    device: str,
    seed: int | None,
    compat: str | None,
    config_dir: Path | None,
    cfg: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Merge what RECIPE_FILE says into the directory OUT; nothing is scored or tracked.

    RECIPE_FILE is a recipe of mergeops or an unchanged mergekit YAML, with the options of
    mergekit-yaml where you are used to them.
    """
    from mergeops import compose, pipeline

    extra = [f"output.device={device}", *([f"seed={seed}"] if seed is not None else [])]
    extra += [f"compat={compat}"] if compat else []
    recipe = compose.compose([*overrides, *extra], config_dir=config_dir, recipe_file=recipe_file)
    if cfg:
        return show_recipe(recipe)
    plan, was_there = pipeline.merge_only(recipe, out, Progress(quiet=quiet))
    if as_json:
        result = {
            "checkpoint": str(out),
            "plan_digest": plan.digest,
            "was_there": was_there,
            "warnings": list(plan.warnings),
        }
        return print_result(result, True)
    text = f"merged into {out} (plan {plan.digest[:12]})"
    found = (
        f"{out} holds this merge already (plan {plan.digest[:12]}), with all files in their sizes; "
        f"`mergeops verify {out}` reads every byte"
    )
    print_result(found if was_there else text, False)


@click.command()
@click.argument("config_file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@options(COMPAT, AS_JSON)
def convert(
    config_file: Path, out: Path | None, force: bool, compat: str | None, as_json: bool
) -> None:
    """Write the recipe of a mergekit YAML to OUT, or print it."""
    from mergeops.mergekit_yaml import read_mergekit
    from mergeops.recipe import Recipe

    if not config_file.is_file():
        raise ConfigError(f"{config_file} does not exist")
    converted = read_mergekit(config_file, compat=compat is not None)
    Recipe.from_dict(converted.recipe)
    for note in converted.notes:
        click.echo(f"mergeops: warning: {note}", err=True)
    if out is not None:
        if out.exists() and not force:
            raise ConfigError(f"{out} exists; choose another name, or add --force")
        out.write_text(converted.yaml(config_file.name), encoding="utf-8")
    if as_json:
        return print_result(dict(converted.recipe), True)
    text = converted.yaml(config_file.name).rstrip("\n") if out is None else f"wrote {out}"
    print_result(text, False)
