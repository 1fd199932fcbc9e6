"""One look at all weights of a recipe: fit, norms, cosines, sign conflicts, ranks."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeops.checkpoint import weights_sha256
from mergeops.errors import ConfigError, MergeError
from mergeops.inspection.fit import Fit, look_at_fit
from mergeops.inspection.moments import Moments
from mergeops.inspection.walk import Facts, TensorFacts, walk
from mergeops.recipe import Recipe
from mergeops.sources import Resolved, Source

CAVEATS = (
    "These numbers say how far and in which directions the sources moved. They do not predict the "
    "score of a merge: orthogonal task vectors can merge badly and conflicting ones well. Score "
    "it: mergeops run.",
    "A sign conflict counts entries, whatever their size: rounding in 16-bit files counts as much "
    "as a large change, and raises the effective rank of full fine-tunes.",
)
WITHOUT_BASE = (
    "Without a base there are no task vectors: norms and cosines are of the whole weights, and "
    "cosines are close to 1 for any models with a common ancestor. Set base to compare changes."
)


@dataclass(frozen=True)
class Layer:
    """Statistics of the tensors of one layer, or of all."""

    name: str
    tensors: int
    moments: Moments
    ranks: tuple[float | None, ...]
    """Mean effective rank of its matrices, for each source; None without a base or a matrix."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was seen."""

    sources: tuple[Source, ...]
    base: Source | None
    base_from: str
    """recipe, adapters or none."""
    fit: Fit
    layers: tuple[Layer, ...]
    """In the order of depth."""
    total: Layer
    tensors: tuple[TensorFacts, ...]
    left_out: Mapping[str, str]
    """Tensor that was not compared -> why."""
    duplicates: tuple[tuple[str, ...], ...]
    """Names of inputs that have the same weights."""

    @property
    def names(self) -> list[str]:
        """The sources' names."""
        return [source.name for source in self.sources]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Positions of each pair of sources."""
        n = len(self.sources)
        return [(i, j) for i in range(n) for j in range(i + 1, n)]

    @property
    def caveats(self) -> list[str]:
        """What the numbers do not say."""
        return [*CAVEATS, *([] if self.base else [WITHOUT_BASE])]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; a number that is not defined is null."""
        return {
            "base": self.base.uri if self.base else None,
            "base_from": self.base_from,
            "sources": [_source(source) for source in self.sources],
            "fits": self.fit.refused is None,
            "refused": self.fit.refused,
            "differences": {name: list(said) for name, said in self.fit.differences.items()},
            "warnings": list(self.fit.warnings),
            "duplicates": [list(group) for group in self.duplicates],
            "total": self._described(self.total),
            "layers": [self._described(layer) for layer in self.layers],
            "tensors": [self._described(_layer(facts.name, [facts])) for facts in self.tensors],
            "left_out": dict(self.left_out),
            "caveats": self.caveats,
        }

    def _described(self, layer: Layer) -> dict[str, Any]:
        moments, names = layer.moments, self.names

        def per_source(values: Sequence[float | None]) -> dict[str, float | None]:
            return dict(zip(names, values, strict=True))

        def per_pair(value: Callable[[int, int], float | None]) -> dict[str, float | None]:
            return {f"{names[i]}|{names[j]}": value(i, j) for i, j in self.pairs}

        n = range(len(names))
        return {
            "name": layer.name,
            "tensors": layer.tensors,
            "entries": moments.entries,
            "norm": per_source([moments.norm(i) for i in n]),
            "relative_norm": per_source([moments.relative_norm(i) for i in n]),
            "changed": per_source([moments.changed(i) for i in n]),
            "effective_rank": per_source(layer.ranks),
            "cosine": per_pair(moments.cosine),
            "distance": per_pair(moments.distance),
            "sign_conflict": per_pair(moments.sign_conflict),
            "any_sign_conflict": moments.any_sign_conflict(),
        }


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe of which there is nothing to look at before anything is merged.

    Raises:
        ConfigError: it makes merges first, or has no sources.
    """
    if recipe.merges:
        raise ConfigError("the recipe makes merges first; inspect the sources of each by itself")
    if not recipe.sources:
        raise ConfigError(
            "there are no sources; name a recipe (FILE.yaml or recipe=NAME) or sources.NAME.uri="
        )


def inspect(
    recipe: Recipe,
    resolved: Resolved,
    *,
    with_ranks: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Compare the sources of a recipe.

    Args:
        recipe: what would be merged.
        resolved: its inputs.
        with_ranks: whether to compute effective ranks, which take most of the time.
        progress: told (entries done, entries in all).

    Raises:
        SourceError: an input's files are missing or corrupt.
        MergeError: the inputs have no tensor in common.
    """
    base, base_from = _base(resolved)
    sources = tuple(resolved.sources.values())
    fit = look_at_fit(recipe, resolved, base)
    try:
        facts = walk(base, sources, with_ranks=with_ranks, progress=progress)
    except MergeError as error:
        raise MergeError("; ".join(filter(None, [str(error), fit.refused]))) from error
    if fit.refused is None:
        fit = dataclasses.replace(fit, refused=_not_finite(base, sources, facts.tensors))
    return Inspection(
        sources=sources,
        base=base,
        base_from=base_from,
        fit=fit,
        layers=tuple(_layer(name, members) for name, members in facts.by_layer().items()),
        total=_layer("all", facts.tensors),
        tensors=facts.tensors,
        left_out=facts.left_out,
        duplicates=_duplicates([*sources, *([base] if base else [])], facts),
    )


def _not_finite(
    base: Source | None, sources: Sequence[Source], tensors: Sequence[TensorFacts]
) -> str | None:
    """Why a merge would refuse the values of an input; None where they are all finite."""
    inputs = [*([base] if base else []), *sources]
    for position, source in enumerate(inputs, start=-1 if base else 0):
        bad = [facts.name for facts in tensors if not facts.moments.is_finite(position)]
        if bad:
            more = f" and {len(bad) - 1} more tensor(s)" if len(bad) > 1 else ""
            return f"{source.name} holds NaN or infinity in {bad[0]}{more}; leave this source out"
    return None


def _base(resolved: Resolved) -> tuple[Source | None, str]:
    """The recipe's base; else the model that every adapter applies to, where it is one."""
    if resolved.base is not None:
        return resolved.base, "recipe"
    adapter_bases = {
        weights_sha256(source.adapter_base): source.adapter_base
        for source in resolved.sources.values()
        if source.adapter_base is not None
    }
    if len(adapter_bases) != 1:
        return None, "none"
    ((digest, path),) = adapter_bases.items()
    return Source("base", str(path), path, digest), "adapters"


def _layer(name: str, members: Sequence[TensorFacts]) -> Layer:
    """The sums of several tensors, and each source's mean rank over those that have one."""
    moments = functools.reduce(operator.add, (facts.moments for facts in members))
    ranks = []
    for by_tensor in zip(*(facts.ranks for facts in members), strict=True):
        known = [rank for rank in by_tensor if rank is not None]
        ranks.append(sum(known) / len(known) if known else None)
    return Layer(name, len(members), moments, tuple(ranks))


def _source(source: Source) -> dict[str, Any]:
    kind = "lora" if source.is_adapter else "full"
    facts = {"name": source.name, "uri": source.uri, "kind": kind}
    return {**facts, "sha256": source.sha256, "run_id": source.run_id}


def _duplicates(inputs: Sequence[Source], facts: Facts) -> tuple[tuple[str, ...], ...]:
    """Inputs with one digest, or whose weights are equal though their files are not."""

    def is_same(first: Source, second: Source) -> bool:
        alike = {(first.name, second.name), (second.name, first.name)} & facts.alike
        return first.sha256 == second.sha256 or (bool(alike) and not facts.left_out)

    groups: list[list[Source]] = []
    for source in inputs:
        for group in groups:
            if is_same(group[0], source):
                group.append(source)
                break
        else:
            groups.append([source])
    return tuple(tuple(source.name for source in group) for group in groups if len(group) > 1)
