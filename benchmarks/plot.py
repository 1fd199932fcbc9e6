"""The table as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import Row

COLOURS = {"mergekit": "#b0b0b0", "mergeops": "#1f77b4", "floor": "#2ca02c"}


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Bars of seconds on a logarithmic scale, with the range of all pairs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.6 * len(rows) + 1.6))
    height = 0.27
    for number, (name, colour) in enumerate(COLOURS.items()):
        places = [i + (number - 1) * height for i in range(len(rows))]
        spreads = [row.wall[name] for row in rows]
        errors = [[s.middle - s.low for s in spreads], [s.high - s.middle for s in spreads]]
        middles = [s.middle for s in spreads]
        axes.barh(places, middles, height, xerr=errors, color=colour, label=name, ecolor="#444444")
    for i, row in enumerate(rows):
        place = row.wall["mergekit"].high * 1.06
        axes.text(place, i - height, f"{row.faster.middle:.1f}x", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row.method for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(right=2 * max(row.wall["mergekit"].high for row in rows))
    axes.set_xlabel("seconds for the whole process (logarithmic)")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
