"""``mergeops statistics``: what models see of a file of prompts, for methods that ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mergeops.activations import KINDS, Measured, kept_in
from mergeops.checkpoint import size_text
from mergeops.cli.console import console, table
from mergeops.cli.options import AS_JSON, CONFIG_DIR, OVERRIDES, Call, options, progress_options
from mergeops.errors import ConfigError
from mergeops.workshop import Workshop


@click.group()
def statistics() -> None:
    """Activations of models, measured by a file of prompts: make, list.

    Methods such as regmean need them; run and merge make what is missing themselves.
    """


@statistics.command()
@OVERRIDES
@options(CONFIG_DIR, AS_JSON, progress_options)
def make(call: Call) -> None:
    """Measure the activations of a recipe's sources by their prompts, or find them measured.

    Each model reads every prompt once, in float32. Kept are sums and counts, no text.
    """
    recipe = call.recipe()
    if not recipe.prompts:
        raise ConfigError(f"method is {recipe.method.name}, which needs no activations")
    workshop = Workshop(recipe, call.progress)
    resolved = workshop.resolve(recipe, measure=False)
    _show(call, workshop.measure(recipe, resolved))


@statistics.command("list")
@OVERRIDES
@options(CONFIG_DIR, AS_JSON)
def list_statistics(call: Call) -> None:
    """What was measured and is kept in output.dir."""
    _show(call, kept_in(Path(call.recipe().output.dir)))


def _show(call: Call, measured: Sequence[Measured]) -> None:
    call.show([_plain(one) for one in measured], lambda _: _print(measured))


def _plain(one: Measured) -> dict[str, Any]:
    keys = ("path", "sha256", "kind", "weights_sha256", "prompts_sha256", "prompts", "tokens")
    counts = {"cut": one.cut, "weights": len(one.layers), "bytes": one.nbytes}
    return {key: getattr(one, key) for key in keys} | counts


def _print(measured: Sequence[Measured]) -> None:
    out = console()
    rows = [
        (
            one.kind,
            one.weights_sha256[:12],
            one.prompts_sha256[:12],
            f"{one.prompts} ({one.cut} cut)" if one.cut else str(one.prompts),
            str(one.tokens),
            f"{len(one.layers)} weights, {size_text(one.nbytes)}",
            one.path,
        )
        for one in measured
    ]
    out.print(
        table(
            ("kind", "weights", "prompts", "texts", "tokens", "holds", "where"), rows, ruled=False
        )
    )
    for kind, about in KINDS.items():
        out.print(f"[dim]{kind}: {about}[/]")
