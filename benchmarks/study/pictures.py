"""The figure: every method against the best single run, and what each run gives to the soup."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.study.cases import ALL, FEW, SOUND
from benchmarks.study.figures import BEST, GAINS, LOSES, NOT_SHOWN, Study, finding
from mergeops.scores import Simultaneous

COLOURS = {GAINS: "#2ca02c", LOSES: "#d62728", NOT_SHOWN: "#8c8c8c"}


def draw_differences(study: Study, path: Path) -> None:
    """Draw what there is of the three panels; nothing where there is none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, Mapping[str, Simultaneous]] = {
        "runs not worse than the base, against the best run": _against_best(study, SOUND),
        "best of each group, against the best run": _against_best(study, FEW),
        "what a run gives to the soup of all": study.contributions(ALL),
    }
    panels = {title: points for title, points in panels.items() if points}
    if not panels:
        return
    longest = max(map(len, panels.values()))
    size = (5 * len(panels), 0.24 * longest + 1.2)
    figure, drawn = pyplot.subplots(1, len(panels), figsize=size, squeeze=False)
    for axes, (title, points) in zip(drawn[0], panels.items(), strict=True):
        for place, found in enumerate(points.values()):
            colour = COLOURS[finding(found)]
            axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
            axes.plot(found.difference, place, "o", color=colour, markersize=5)
        axes.axvline(0.0, color="#444444", linewidth=0.8)
        axes.set_yticks(range(len(points)), list(points), fontsize=8)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("difference on held-out items, 95 % for all together", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _against_best(study: Study, pool: str) -> dict[str, Simultaneous]:
    return {row.result.name: row.against[BEST] for row in study.methods(pool)}
