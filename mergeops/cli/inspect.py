"""The command that looks at a recipe's sources before anything is merged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergeops import inspection
from mergeops.cli.console import console, table
from mergeops.cli.options import (
    AS_JSON,
    CONFIG_DIR,
    OVERRIDES,
    PATH,
    Call,
    options,
    print_json,
    progress_options,
)
from mergeops.errors import ConfigError
from mergeops.inspection import Inspection, Layer, save_figures
from mergeops.workshop import Workshop

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@OVERRIDES
@click.option("--plot", type=PATH, metavar="DIR", help="Write heat maps (PNG) to DIR.")
@click.option("--no-rank", is_flag=True, help="Skip effective ranks, which take most of the time.")
@options(CONFIG_DIR, AS_JSON, progress_options)
def inspect(call: Call, plot: Path | None, no_rank: bool) -> None:
    """Will these merge, and how do their task vectors interfere? Nothing is merged or logged.

    Exit code 4 says that the recipe cannot be merged as it is.
    """
    if plot is not None and plot.exists() and not plot.is_dir():
        raise ConfigError(f"--plot {plot} is a file; name a directory")
    recipe = call.recipe()
    inspection.check_recipe(recipe)
    resolved = Workshop(recipe, call.progress).resolve(recipe, measure=False)
    with call.progress.bar("comparing weights") as tick:
        seen = inspection.inspect(recipe, resolved, with_ranks=not no_rank, progress=tick)
    plots = save_figures(seen, plot) if plot is not None else []
    if call.as_json:
        print_json(seen.to_dict() | {"plots": [str(path) for path in plots]})
    else:
        print_inspection(seen, plots)
    if seen.fit.refused is not None:
        sys.exit(4)


MOST_PAIRS = 15
"""Of more pairs, those with the largest cosines are shown."""


def print_inspection(seen: Inspection, plots: Sequence[Path] = ()) -> None:
    """Compatibility, sources, pairs, layers, and what the numbers do not say."""
    out = console()
    for line in _verdict(seen):
        out.print(line, markup=False, soft_wrap=True)
    out.print(_sources(seen))
    if seen.pairs:
        out.print(_pairs(seen))
    out.print(_layers(seen))
    if seen.left_out:
        name, why = next(iter(seen.left_out.items()))
        out.print(f"{len(seen.left_out)} tensor(s) not compared, e.g. {name}: {why}", markup=False)
    for path in plots:
        out.print(f"plot: {path}", markup=False, soft_wrap=True)
    for caveat in seen.caveats:
        out.print(f"note: {caveat}", style="dim", markup=False)


def _verdict(seen: Inspection) -> list[str]:
    refused = seen.fit.refused
    lines = [f"these do not merge: {refused}" if refused else "these merge with this recipe"]
    for name, differences in seen.fit.differences.items():
        lines += [f"  {name}: {difference}" for difference in differences]
    lines += [f"  note: {warning}" for warning in seen.fit.warnings]
    lines += [f"  same weights: {', '.join(group)}" for group in seen.duplicates]
    if seen.base is None:
        lines.append("base: none")
    elif seen.base_from == "adapters":
        lines.append(f"base: {seen.base.uri}, which the adapters apply to")
    else:
        lines.append(f"base: {seen.base.uri}")
    return lines


def _sources(seen: Inspection) -> Table:
    moments = seen.total.moments
    rows = []
    for i, source in enumerate(seen.sources):
        kind = "lora" if source.is_adapter else "full"
        norm, rank = _number(moments.norm(i)), _number(seen.total.ranks[i])
        relative, changed = _percent(moments.relative_norm(i)), _percent(moments.changed(i))
        rows.append((source.name, kind, norm, relative, changed, rank, source.sha256[:12]))
    columns = ("source", "kind", "norm", "of base", "changed", "eff. rank", "sha256")
    return table(columns, rows, words=2)


def _pairs(seen: Inspection) -> Table:
    names, moments = seen.names, seen.total.moments
    pairs = sorted(seen.pairs, key=lambda pair: -(moments.cosine(*pair) or 0.0))[:MOST_PAIRS]
    rows = [
        (
            f"{names[i]}, {names[j]}",
            _number(moments.cosine(i, j)),
            _number(moments.distance(i, j)),
            _percent(moments.sign_conflict(i, j)),
        )
        for i, j in pairs
    ]
    more = len(seen.pairs) - len(rows)
    first = f"pair (and {more} more in --json)" if more else "pair"
    return table((first, "cosine", "distance", "sign conflict"), rows, words=2)


def _layers(seen: Inspection) -> Table:
    rows = [_layer(seen, layer) for layer in (*seen.layers, seen.total)]
    return table(("layer", "norm of base", "cosine", "sign conflict", "eff. rank"), rows, words=2)


def _layer(seen: Inspection, layer: Layer) -> tuple[str, ...]:
    moments, sources = layer.moments, range(len(seen.sources))
    return (
        layer.name,
        _span([moments.relative_norm(i) for i in sources], _percent),
        _span([moments.cosine(i, j) for i, j in seen.pairs], _number),
        _percent(moments.any_sign_conflict()),
        _span(list(layer.ranks), _number),
    )


def _span(values: Iterable[float | None], show: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = show(min(known)), show(max(known))
    return low if low == high else f"{low} to {high}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
