"""A mixture of what a file names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergeops.mixture.mixture import Mixture, make_mixture
from mergeops.progress import Progress
from mergeops.recipe import ModelName, compose, read_mixture
from mergeops.sources import resolve_with_bar


def mixture_of(
    file: Path, out: Path, *, seed: int = 0, device: str = "auto", progress: Progress
) -> Mixture:
    """Find the models as a recipe's would be found, and make them experts of one.

    Args:
        file: YAML of mergekit-moe.
        out: as ``make_mixture``, and so are the others.
        seed: of random gates.
        device: see ``make_mixture``.
        progress: where steps are shown.

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
    content: dict[str, Any] = {
        "base": base.get("base", base["uri"]),
        "base_adapter": base["uri"] if "base" in base else None,
        "method": "linear",
        "sources": sources,
    }
    recipe = compose(content=content)
    cache_dir = Path(recipe.output.dir) / "cache"
    resolved = resolve_with_bar(recipe, progress, cache_dir=cache_dir)
    assert resolved.base is not None, "the recipe has one"
    found = {spec.base: resolved.base} | {m: resolved.sources[name] for m, name in names.items()}
    return make_mixture(
        spec,
        resolved.base,
        [found[expert.model] for expert in spec.every],
        out,
        cache_dir=cache_dir,
        seed=seed,
        device=device,
        progress=progress,
    )


def _named(model: ModelName) -> dict[str, str]:
    return {"uri": model.uri, **({"base": model.base} if model.base else {})}
