"""A mixture of what a file names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergeops.derived.tool_trial import Derived, ToolLog, ToolTrial
from mergeops.mixture import Mixture, make_mixture
from mergeops.progress import Progress
from mergeops.recipe import MOE, ModelName, ToolSpec, read_mixture


def mixture_of(
    file: Path,
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    progress: Progress,
    log: ToolLog | None = None,
) -> Derived[Mixture]:
    """Find the models as a recipe's would be found, and make them experts of one.

    Args:
        file: YAML of mergekit-moe.
        out: as ``make_mixture``, and so are the others.
        seed: of random gates.
        device: see ``make_mixture``.
        progress: where steps are shown.
        log: whether and how it becomes a trial; None makes none.

    Raises:
        TrackingError: MLflow is needed and cannot be reached.
        MergeopsError: as ``read_mixture`` and ``make_mixture``.
    """
    spec = read_mixture(file)
    names: dict[ModelName, str] = {}
    for expert in spec.every:
        if expert.model != spec.base:
            names.setdefault(expert.model, f"expert_{len(names) + 1}")
    sources = {name: _named(model) for model, name in names.items()}
    base = _named(spec.base)
    inputs: dict[str, Any] = {
        "base": base.get("base", base["uri"]),
        "base_adapter": base["uri"] if "base" in base else None,
        "sources": sources,
    }
    trial = ToolTrial(
        ToolSpec(MOE, {"seed": seed, "mixture": spec.to_dict()}), inputs, log or ToolLog(), progress
    )
    resolved = trial.resolve()
    assert resolved.base is not None, "the recipe has one"
    found = {spec.base: resolved.base} | {m: resolved.sources[name] for m, name in names.items()}
    made = make_mixture(
        spec,
        resolved.base,
        [found[expert.model] for expert in spec.every],
        out,
        cache_dir=trial.cache_dir,
        seed=seed,
        device=device,
        progress=progress,
    )
    return trial.ended(made, out, measures=made.measures(), plan=made.plan.to_dict())


def _named(model: ModelName) -> dict[str, str]:
    return {"uri": model.uri, **({"base": model.base} if model.base else {})}
