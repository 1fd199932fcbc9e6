"""Will these merge, and how do their task vectors interfere: what a look at the weights can tell.

fit       which sources differ from the first, and whether the recipe can be planned
moments   sums over a tensor's entries that all statistics are made from
ranks     effective rank of a task vector's matrices
stream    one pass over all weights, a few rows of each source at a time
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeops.errors import MergeError
from mergeops.inspection.fit import Fit, look_at_fit
from mergeops.inspection.moments import Moments
from mergeops.inspection.stream import Facts, TensorFacts, walk
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


@dataclass(frozen=True)
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
            "sources": [
                {
                    "name": source.name,
                    "uri": source.uri,
                    "kind": "lora" if source.is_adapter else "full",
                    "sha256": source.sha256,
                    "run_id": source.run_id,
                }
                for source in self.sources
            ],
            "fits": self.fit.refused is None,
            "refused": self.fit.refused,
            "differences": {name: list(found) for name, found in self.fit.differences.items()},
            "warnings": list(self.fit.warnings),
            "duplicates": [list(group) for group in self.duplicates],
            "total": self._described(self.total),
            "layers": [self._described(layer) for layer in self.layers],
            "tensors": [
                self._described(Layer(one.name, 1, one.moments, one.ranks)) for one in self.tensors
            ],
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
    layers = tuple(_layer(name, members) for name, members in facts.by_layer().items())
    total = _layer("all", facts.tensors)
    return Inspection(
        sources,
        base,
        base_from,
        fit,
        layers,
        total,
        facts.tensors,
        facts.left_out,
        _duplicates([*sources, *([base] if base else [])], facts),
    )


def _not_finite(
    base: Source | None, sources: Sequence[Source], tensors: Sequence[TensorFacts]
) -> str | None:
    """Why a merge would refuse the values of an input; None where they are all finite."""
    inputs = [*([base] if base else []), *sources]
    for position, source in enumerate(inputs, start=-1 if base else 0):
        bad = [one.name for one in tensors if not one.moments.is_finite(position)]
        if bad:
            more = f" and {len(bad) - 1} more tensor(s)" if len(bad) > 1 else ""
            return f"{source.name} holds NaN or infinity in {bad[0]}{more}; leave this source out"
    return None


def _base(resolved: Resolved) -> tuple[Source | None, str]:
    """The recipe's base; else the model that every adapter applies to, where it is one."""
    from mergeops.checkpoint import weights_sha256

    if resolved.base is not None:
        return resolved.base, "recipe"
    found = {
        weights_sha256(source.adapter_base): source.adapter_base
        for source in resolved.sources.values()
        if source.adapter_base is not None
    }
    if len(found) != 1:
        return None, "none"
    ((digest, path),) = found.items()
    return Source("base", str(path), path, digest), "adapters"


def _layer(name: str, members: Sequence[TensorFacts]) -> Layer:
    moments = members[0].moments
    for one in members[1:]:
        moments = moments + one.moments
    ranks = []
    for i in range(moments.n):
        known = [rank for one in members if (rank := one.ranks[i]) is not None]
        ranks.append(sum(known) / len(known) if known else None)
    return Layer(name, len(members), moments, tuple(ranks))


def _duplicates(inputs: Sequence[Source], facts: Facts) -> tuple[tuple[str, ...], ...]:
    """Inputs with one digest, or whose weights are equal though their files are not."""

    def is_same(one: Source, other: Source) -> bool:
        alike = {(one.name, other.name), (other.name, one.name)} & facts.alike
        return one.sha256 == other.sha256 or (bool(alike) and not facts.left_out)

    groups: list[list[Source]] = []
    for one in inputs:
        group = next((g for g in groups if is_same(g[0], one)), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    return tuple(tuple(one.name for one in group) for group in groups if len(group) > 1)
