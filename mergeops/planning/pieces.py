"""Pieces: each tensor of the result with what it is merged from, before parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mergeops.checkpoint import StoredTensor
from mergeops.errors import ConfigError, MergeError
from mergeops.methods import Method, check_source_count
from mergeops.planning.architecture import is_before_layers, layer_depths
from mergeops.planning.preflight import check_fit
from mergeops.planning.views import View
from mergeops.recipe import BASE, Module, Setting, Slice, SlicePart


@dataclass(frozen=True)
class Ingredient:
    """One input's tensor."""

    source: str
    stored: StoredTensor
    parameters: Mapping[str, Setting]
    """What the slice's part sets."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the result."""

    name: str
    depth: float
    """From 0, in or before the first layer, to 1, in or after the last."""
    like: StoredTensor
    """What it has its shape and format from."""
    sources: tuple[Ingredient, ...]
    base: Ingredient | None
    parameters: tuple[Mapping[str, Setting], ...] = ()
    """What the slice and the module set, in this order."""
    is_taken: bool = False
    """Whether it is one input's tensor, not merged."""

    @property
    def ingredients(self) -> tuple[Ingredient, ...]:
        """The base, where there is one, and the sources."""
        return (*([self.base] if self.base else []), *self.sources)


class Assembler:
    """Makes pieces from the inputs' views.

    Args:
        method: the merge method.
        views: each input's tensors, the base first where there is one.
        sources: the recipe's names, in order.
        after: depth of the tensors after the layers.
        leave_out: whether an input may lack a tensor.
    """

    def __init__(
        self,
        method: Method,
        views: Mapping[str, View],
        sources: Iterable[str],
        *,
        after: float,
        leave_out: bool,
    ) -> None:
        self.method = method
        self.views = views
        self.sources = tuple(SlicePart(name) for name in sources)
        self.has_base = method.uses_base(BASE in views)
        self.after = after
        self.leave_out = leave_out

    def plain(self, names: Iterable[str]) -> list[Piece]:
        """Tensors that every source gives under their own name."""
        names = list(names)
        if names:
            check_source_count(self.method, len(self.sources))
        depths = layer_depths(names, self.after)
        whole = Slice(self.sources)
        return [self.piece(name, depths[name], whole, (), {}) for name in names]

    def outside(self, name: str, module: Module, *, before: bool) -> Piece:
        """A tensor outside the layers of a stack: as the first or the last slice."""
        before = before or is_before_layers(name)
        nearest = module.slices[0 if before else -1]
        return self.piece(name, 0.0 if before else self.after, nearest, (module.parameters,), {})

    def piece(
        self,
        name: str,
        depth: float,
        one: Slice,
        module: Iterable[Mapping[str, Setting]],
        names: Mapping[int, str],
    ) -> Piece:
        """A tensor from the parts of a slice.

        Args:
            name: in the result.
            depth: of the tensor.
            one: the slice.
            module: what its module sets.
            names: position of a part (-1 is the base) -> the tensor's name there, where it differs.

        Raises:
            ConfigError: the slice names a base that is not there.
            MergeError: an input lacks it, or shapes differ.
        """
        base = None
        if self.has_base:
            base = self._find(one.base or SlicePart(BASE), names.get(-1, name))
        parts = [self._find(part, names.get(i, name)) for i, part in enumerate(one.sources)]
        sources = tuple(part for part in parts if part is not None)
        present = [*([base] if base else []), *sources]
        if not present:
            raise MergeError(f"no source has {name}")
        check_fit(name, [(ingredient.source, ingredient.stored) for ingredient in present])
        like, parameters = present[0].stored, (one.parameters, *module)
        lacks_base = self.has_base and base is None
        if lacks_base and len(sources) > 1:
            raise MergeError(
                f"the base lacks {name}, which {', '.join(s.source for s in sources)} have: "
                "task vectors need it in the base"
            )
        lacks_sources = len(sources) < min(len(parts), self.method.min_sources)
        if lacks_base or lacks_sources:
            return Piece(name, depth, like, (present[0],), None, parameters, is_taken=True)
        return Piece(name, depth, like, sources, base, parameters)

    def _find(self, part: SlicePart, tensor: str) -> Ingredient | None:
        if part.source not in self.views:
            raise ConfigError(f"a slice names {part.source}, but the recipe has none")
        stored = self.views[part.source].get(tensor)
        if stored is not None:
            return Ingredient(part.source, stored, part.parameters)
        if self.leave_out:
            return None
        raise MergeError(
            f"{part.source} lacks {tensor}; set missing=leave_out to merge such tensors from the "
            "inputs that have them"
        )
