"""Assembly: the recipe's slices and modules as a list of tensors, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mergeops.errors import ConfigError, MergeError, about
from mergeops.methods import Method, check_source_count
from mergeops.planning.architecture import changed, layer_depths
from mergeops.planning.pieces import Assembler, Piece
from mergeops.planning.preflight import check_experts, check_tensors
from mergeops.planning.stacks import Stack, find_stacks, get, is_per_layer, pick, resized
from mergeops.planning.views import View
from mergeops.recipe import BASE, Module, Recipe, Slice, SlicePart

Configs = Mapping[str, Mapping[str, Any]]

OTHER_NAMES = {"multi_modal_projector": ("merger", "connector", "mm_projector")}
"""mergekit's name of a module without layers -> what models call it."""


@dataclass(frozen=True)
class Assembly:
    """What the result is made of."""

    pieces: tuple[Piece, ...]
    config: Mapping[str, Any]
    """What changes in config.json."""


def assemble(
    recipe: Recipe, method: Method, views: Mapping[str, View], configs: Configs
) -> Assembly:
    """Decide what every tensor of the result is merged from.

    Args:
        recipe: what the user wrote.
        method: its method.
        views: each input's tensors, the base first where there is one.
        configs: each input's config.json.

    Raises:
        ConfigError: a slice or module does not fit the models.
        MergeError: the inputs' tensors do not fit each other.
    """
    after = 0.0 if recipe.compat == "mergekit" else 1.0
    leave_out = recipe.missing == "leave_out"
    assembler = Assembler(method, views, recipe.sources, after=after, leave_out=leave_out)
    first = next(iter(views))
    if not recipe.slices and not recipe.modules:
        if leave_out:
            check_experts(views)
        else:
            check_tensors(views)
        names = dict.fromkeys(name for view in views.values() for name in view)
        return Assembly(tuple(assembler.plain(names)), {})
    stacks = find_stacks(views[first], configs[first])
    layout = _Layout(assembler, stacks, views[first], configs)
    if recipe.slices:
        with about("slices"):
            main = pick(stacks, None)
        return layout.assemble({main: Module(recipe.slices)}, main)
    modules: dict[Stack, Module] = {}
    parts: dict[str, Module] = {}
    for word, module in recipe.modules.items():
        # T5's embeddings, ``shared``, are a module without layers.
        prefix = _part(word, module, views[first], stacks)
        if prefix is not None:
            parts[prefix] = module
        else:
            with about(f"modules.{word}"):
                modules[pick(stacks, word)] = module
    return layout.assemble(modules, None, parts)


def _part(word: str, module: Module, view: View, stacks: Sequence[Stack]) -> str | None:
    """What the names of a module without layers begin with; None where it is no such module."""
    if any(part.layers is not None for one in module.slices for part in one.sources):
        return None
    words = (word, *OTHER_NAMES.get(word, ()))
    prefixes = {
        ".".join(parts[: i + 1]) + "."
        for parts in (name.split(".") for name in view)
        for i, part in enumerate(parts[:-1])
        if part in words
    }
    if len(prefixes) != 1:
        return None
    (prefix,) = prefixes
    inside = [name for name in view if name.startswith(prefix)]
    layers = [name for name in inside if any(s.layer(name) is not None for s in stacks)]
    return None if layers else prefix


class _Layout:
    """The stacks of the model that gives the config, and what is made of them."""

    def __init__(
        self, assembler: Assembler, stacks: Sequence[Stack], reference: View, configs: Configs
    ) -> None:
        self._assembler = assembler
        self._stacks = stacks
        self._reference = reference
        self._configs = configs
        self._config = next(iter(configs.values()))
        self._indexes: dict[tuple[Stack, str | None], dict[int, dict[str, None]]] = {}

    def assemble(
        self,
        modules: Mapping[Stack, Module],
        rest: Stack | None,
        parts: Mapping[str, Module] = MappingProxyType({}),
    ) -> Assembly:
        """All pieces, in the order of the reference.

        Args:
            modules: the stacks that the recipe names.
            rest: whose first slice gives the other stacks; None merges them from all sources.
            parts: modules without layers, by the prefix of their tensors' names.
        """
        owners = {name: self._owner(name) for name in self._reference}
        apart = {
            name: module
            for name in self._reference
            for prefix, module in parts.items()
            if name.startswith(prefix)
        }
        plain = [
            name
            for name, owner in owners.items()
            if owner not in modules and rest is None and name not in apart
        ]
        pieces = {piece.name: piece for piece in self._assembler.plain(plain)}
        config: dict[str, Any] = {}
        ordered: list[Piece] = []
        begun: set[Stack] = set()
        depths = layer_depths(owners)
        shared = {
            f"{stack.prefix}0.{suffix}" for stack in modules for suffix in self._shared(stack)
        }
        for name, owner in owners.items():
            module = modules.get(owner)
            if name in pieces:
                ordered.append(pieces[name])
            elif name in apart:
                ordered.append(self._assembler.outside(name, apart[name], before=True))
            elif module is None:
                assert rest is not None
                first, settings = modules[rest].slices[0], modules[rest].parameters
                ordered.append(self._assembler.piece(name, depths[name], first, (settings,), {}))
            elif owner.layer(name) is None or name in shared:
                # A tensor of the stack that stands in its first layer is needed before the layers.
                before = owner.layer(name) is not None
                ordered.append(self._assembler.outside(name, module, before=before))
            elif owner not in begun:
                begun.add(owner)
                layers, changes = self._layers(owner, module)
                ordered += layers
                config = changed(config, changes)
        return Assembly(tuple(ordered), config)

    def _owner(self, name: str) -> Stack:
        """The stack that a tensor is in, or nearest to by name; that which writes the text where
        none is nearer."""
        ours = name.split(".")

        def nearness(stack: Stack) -> tuple[int, bool]:
            theirs = stack.prefix.split(".")
            pairs = enumerate(zip(ours, theirs, strict=False))
            shared = next((i for i, (a, b) in pairs if a != b), len(theirs))
            return shared, stack.kind in ("text", "decoder")

        inside = next((s for s in self._stacks if s.layer(name) is not None), None)
        return inside or max(self._stacks, key=nearness)

    def _by_layer(self, stack: Stack, source: str | None) -> dict[int, dict[str, None]]:
        """Number of a layer -> the rest of its tensors' names, of a source or the reference."""
        suffixes = self._indexes.get((stack, source))
        if suffixes is None:
            suffixes = {}
            view = self._reference if source is None else self._assembler.views.get(source, {})
            for name in view:
                place = stack.layer(name)
                if place is not None:
                    suffixes.setdefault(place[0], {})[place[1]] = None
            self._indexes[stack, source] = suffixes
        return suffixes

    def _shared(self, stack: Stack) -> set[str]:
        """What only the first layer has, for the whole stack, e.g. T5's relative positions."""
        layers = self._by_layer(stack, None)
        first, *others = (layers[i].keys() for i in range(min(stack.count, 3)))
        if not others or any(other - first for other in others):
            return set()
        return set(first).difference(*others)

    def _layers(self, stack: Stack, module: Module) -> tuple[list[Piece], dict[str, Any]]:
        assembler = self._assembler
        shared = self._shared(stack)
        pieces: list[Piece] = []
        origins: list[tuple[Mapping[str, Any], int]] = []
        for number, one, depth, numbers in self._each_layer(stack, module):
            where = f"{module.where}[{number}]"
            with about(where):
                check_source_count(assembler.method, len(one.sources))
            k = len(origins)
            lead, i = one.sources[0].source, numbers[0]
            suffixes = self._by_layer(stack, lead)[i]
            for p, part in enumerate(one.sources):
                with about(f"{where}.sources[{p}]"):
                    self._check_same_parts(stack, part.source, numbers[p], lead, i, shared)
            for suffix in suffixes:
                if suffix in shared:
                    continue
                names = {p: f"{stack.prefix}{n}.{suffix}" for p, n in numbers.items()}
                name = f"{stack.prefix}{k}.{suffix}"
                with about(where):
                    pieces.append(assembler.piece(name, depth, one, (module.parameters,), names))
            origins.append((self._configs[lead], i))
        changes = resized(stack, self._config, origins)
        with about(module.where):
            self._check_kinds(stack, pieces, changes, shared)
        return pieces, changes

    def _each_layer(
        self, stack: Stack, module: Module
    ) -> Iterator[tuple[int, Slice, float, dict[int, int]]]:
        """For each layer of the result: number of its slice, the slice, depth, and the number of
        the layer in each part of the slice (-1 is the base)."""
        for number, one in enumerate(module.slices):
            where = f"{module.where}[{number}]"
            ranges = [
                self._range(stack, part, f"{where}.sources[{p}]")
                for p, part in enumerate(one.sources)
            ]
            starts = {p: start for p, (start, _) in enumerate(ranges)}
            if self._assembler.has_base:
                if one.base is not None:
                    starts[-1] = self._range(stack, one.base, f"{where}.base")[0]
                elif len(set(ranges)) == 1:
                    part = SlicePart(BASE, ranges[0])
                    starts[-1] = self._range(stack, part, f"{where}.base")[0]
                else:
                    raise ConfigError(
                        f"slice {number} merges layers {', '.join(map(str, map(list, ranges)))}; "
                        "say which of the base's they are task vectors to, with base: [from, to]",
                        at=where,
                    )
            length = ranges[0][1] - ranges[0][0]
            for i in range(length):
                # A slice has a depth of its own: 0 at its first layer, 1 at its last.
                depth = i / (length - 1) if length > 1 else 1.0
                yield number, one, depth, {p: start + i for p, start in starts.items()}

    def _range(self, stack: Stack, part: SlicePart, where: str) -> tuple[int, int]:
        count = max(self._by_layer(stack, part.source), default=-1) + 1
        layers = part.layers or (0, count)
        if layers[1] > count:
            raise ConfigError(
                f"{where} takes layers {list(layers)} of {part.source}, whose {stack.prefix}* "
                f"has {count} layers; allowed: up to [0, {count}]",
                at=where,
            )
        return layers

    def _check_same_parts(
        self, stack: Stack, name: str, i: int, lead: str, j: int, shared: set[str]
    ) -> None:
        if self._assembler.leave_out:
            return
        ours = self._by_layer(stack, lead)[j].keys() - shared
        theirs = self._by_layer(stack, name)[i].keys() - shared
        if ours != theirs:
            example = min(ours ^ theirs)
            raise MergeError(
                f"layer {i} of {name} and layer {j} of {lead} are of different kinds: only one has "
                f"{example}"
            )

    def _check_kinds(
        self, stack: Stack, pieces: Sequence[Piece], changes: Mapping[str, Any], shared: set[str]
    ) -> None:
        """Where layers differ in kind, the config must be able to say which is which."""
        layers = self._by_layer(stack, None)
        kinds = [layers[i].keys() - shared for i in range(stack.count)]
        if all(kind == kinds[0] for kind in kinds):
            return
        if any(
            isinstance(v, list) and is_per_layer(k) for k, v in get(changes, stack.section).items()
        ):
            return
        made: dict[int, set[str]] = {}
        for piece in pieces:
            place = stack.layer(piece.name)
            assert place is not None
            made.setdefault(place[0], set()).add(place[1])
        for k, kind in made.items():
            if kind != kinds[min(k, stack.count - 1)]:
                raise MergeError(
                    f"layer {k} of the merge would be of another kind than config.json makes it: "
                    f"{stack.prefix}* has layers of several kinds and no list that says which; "
                    "keep every layer at a place of its kind"
                )
