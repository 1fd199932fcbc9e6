"""What inspect saw, as heat maps: one row a layer, one column a source or a pair of sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeops.errors import ConfigError
from mergeops.inspection.inspection import Inspection, Layer
from mergeops.report import plain_label, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_COLUMNS = 45
"""Of more pairs, those with the largest cosines are drawn."""
_TEXT = "#333333"


def figures(seen: Inspection) -> dict[str, Figure]:
    """File name without suffix -> figure; those that a missing base leaves without numbers are
    left out."""
    names, pairs = seen.names, _pairs(seen)
    labels = [f"{names[i]} · {names[j]}" for i, j in pairs]
    sources = range(len(names))
    maps = {}
    if seen.base is not None:
        maps["norms"] = _map(
            seen,
            "Norm of the task vector, in % of the base's norm",
            names,
            lambda layer: [_percent(layer.moments.relative_norm(i)) for i in sources],
            cmap="viridis",
        )
    if pairs:
        what = "task vectors" if seen.base else "whole weights (no base)"
        maps["cosines"] = _map(
            seen,
            f"Cosine of {what}",
            labels,
            lambda layer: [layer.moments.cosine(i, j) for i, j in pairs],
            cmap="RdBu",
            limits=(-1.0, 1.0),
        )
    if pairs and seen.base is not None:
        maps["sign_conflicts"] = _map(
            seen,
            "Entries that both changed, in opposite directions, %",
            labels,
            lambda layer: [_percent(layer.moments.sign_conflict(i, j)) for i, j in pairs],
            cmap="magma_r",
            limits=(0.0, 100.0),
        )
    if any(rank is not None for rank in seen.total.ranks):
        maps["effective_ranks"] = _map(
            seen,
            "Effective rank of the task vector, mean over the layer's matrices",
            names,
            lambda layer: list(layer.ranks),
            cmap="viridis",
        )
    return maps


def save_figures(seen: Inspection, folder: Path) -> list[Path]:
    """Write each figure as PNG.

    Raises:
        ConfigError: the directory cannot be written.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures(seen).items():
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=150)
            written.append(path)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"--plot {folder} cannot be written: {why}") from error
    return written


def _map(
    seen: Inspection,
    title: str,
    columns: Sequence[str],
    values: Callable[[Layer], Sequence[float | None]],
    *,
    cmap: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    from matplotlib.figure import Figure

    layers = [*seen.layers, seen.total]
    grid = [[math.nan if v is None else v for v in values(layer)] for layer in layers]
    width = min(24.0, 3.4 + 0.62 * len(columns))
    figure = Figure(figsize=(width, 1.9 + 0.24 * len(layers)), layout="constrained")
    axes: Any = figure.subplots()
    low, high = limits or (0.0, None)
    picture = axes.imshow(grid, aspect="auto", cmap=cmap, vmin=low, vmax=high)
    labels = [plain_label(column) for column in columns]
    axes.set_xticks(range(len(columns)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers])
    axes.axhline(len(layers) - 1.5, color="white", lw=3)
    tidy(axes, labelsize=8, labelcolor=_TEXT)
    if len(columns) <= 12:
        _write_numbers(axes, picture, grid)
    figure.colorbar(picture, ax=axes, shrink=0.8).outline.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=_TEXT)
    return figure


def _write_numbers(axes: Any, picture: Any, grid: Sequence[Sequence[float]]) -> None:
    for row, line in enumerate(grid):
        for column, value in enumerate(line):
            if math.isnan(value):
                continue
            # Luma as in ITU-R BT.601.
            red, green, blue, _ = picture.cmap(picture.norm(value))
            is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            style = {"ha": "center", "va": "center", "fontsize": 7}
            axes.text(column, row, f"{value:.3g}", color="white" if is_dark else _TEXT, **style)


def _pairs(seen: Inspection) -> list[tuple[int, int]]:
    if len(seen.pairs) <= MOST_COLUMNS:
        return seen.pairs
    moments = seen.total.moments
    by_cosine = sorted(seen.pairs, key=lambda pair: -abs(moments.cosine(*pair) or 0.0))
    return sorted(by_cosine[:MOST_COLUMNS])


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
