"""Extraction of what two URIs name."""

from __future__ import annotations

from pathlib import Path

from mergeops.derived.tool_trial import Derived, ToolLog, ToolTrial
from mergeops.extraction import Extracted, Rank, extract
from mergeops.progress import Progress
from mergeops.recipe import EXTRACT, ToolSpec


def extract_by_uri(
    base: str,
    tuned: str,
    out: Path,
    *,
    rank: Rank,
    others: str,
    progress: Progress,
    log: ToolLog | None = None,
) -> Derived[Extracted]:
    """Find base and fine-tune as a recipe's would be found, and extract the adapter.

    Args:
        base: a directory or a URI.
        tuned: another one.
        out: as ``extract``.
        rank: as ``extract``.
        others: as ``extract``.
        progress: where steps are shown.
        log: whether and how it becomes a trial; None makes none.

    Raises:
        ConfigError, SourceError, MergeError: as ``extract``.
        TrackingError: MLflow is needed and cannot be reached.
    """
    auto = {"rank": "auto", "energy": rank.energy, "max_rank": rank.most}
    ranks = auto if rank.number is None else {"rank": rank.number}
    spec = ToolSpec(EXTRACT, {**ranks, "others": others})
    inputs = {"base": base, "sources": {"tuned": tuned}}
    trial = ToolTrial(spec, inputs, log or ToolLog(), progress)
    resolved = trial.resolve()
    assert resolved.base is not None, "the recipe has one"
    made = extract(
        resolved.base,
        resolved.sources["tuned"],
        out,
        rank=rank,
        others=others,
        progress=progress,
    )
    return trial.ended(made, out, measures=made.measures())
