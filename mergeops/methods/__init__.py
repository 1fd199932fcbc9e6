"""Merge methods: a registry that fills itself from the files of this package.

Adding a file with one decorated function adds the method everywhere: recipes, command line,
documentation and contract tests. A method sees chunks of one parameter tensor, flattened and
already in the compute dtype; it never sees files, devices or threads. So the engine may cut a
tensor anywhere, and the result may not depend on where:

* ``merge`` is element-wise: entry i of the result depends on entry i of the inputs, on the
  parameters and on ``Place`` (offset of the chunk, random keys, statistics of the tensor);
* ``statistics``, where a method needs it, runs first: it scans the whole tensor, as often as it
  likes, and its result is handed to every ``merge`` of the tensor;
* ``whole_rows``, where a method needs it, makes chunks of whole rows of the last dimension, in
  ``merge`` and in ``statistics`` alike: entry i may then depend on all of its row.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy.typing as npt

from mergeops.attribute_docs import attribute_docstrings
from mergeops.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 16384
"""Chunks start at multiples of this many elements: sums over blocks do not depend on the chunks."""


@dataclass(frozen=True)
class Place:
    """What a method may know about the chunk in hand."""

    numel: int
    """Elements of the whole tensor."""
    per_source: Mapping[str, tuple[float, ...]]
    """Each source parameter's values, in recipe order."""
    keys: tuple[int, ...] = ()
    """One 64-bit random key for each source: depends on seed, source digest and tensor name."""
    offset: int = 0
    """Index of the chunk's first element in the flattened tensor; a multiple of ``BLOCK``, or of
    ``row_length`` for methods that take whole rows."""
    statistics: Any = None
    """What the method's ``statistics`` returned for this tensor."""
    shape: tuple[int, ...] = ()
    """Shape of the whole tensor."""

    @property
    def row_length(self) -> int:
        """Size of the last dimension; a tensor without dimensions is one row of one entry."""
        return self.shape[-1] if self.shape else self.numel


Look = Callable[[Any, "Tensor", int], "Tensor"]
"""``look(base [m] | None, sources [n, m], offset) -> a tensor of any shape``."""


FusedLook = Callable[[Any], npt.NDArray[Any] | None]
"""The same from a ``fused.Bits`` as an array, or None where it cannot."""


class Scan(Protocol):
    """One pass over a tensor."""

    def __call__(
        self,
        look: Look,
        start: int = 0,
        stop: int | None = None,
        *,
        fused: FusedLook | None = None,
    ) -> Iterator[Any]:
        """Yield what ``look`` gives for each chunk, in order, on the CPU; or ``fused``, an array.

        Args:
            look: may run in several threads and on any device.
            fused: may be called instead, for the same values.
            start: first element; a multiple of ``BLOCK`` where its sums are wanted, of the row
                length with whole rows.
            stop: one past the last element, or None for the end of the tensor.
        """
        ...


MergeFunction = Callable[[Any, "Tensor", Any, Place], "Tensor"]
StatisticsFunction = Callable[[Scan, Any, Place], Any]
CheckFunction = Callable[[Mapping[str, Sequence[float]], Any], None]
WholeRowsFunction = Callable[[Any], bool]
FormulaFunction = Callable[[Any, Place, int], Any]


class ParameterDescription(NamedTuple):
    """One line of ``mergeops methods NAME``."""

    name: str
    type: str
    default: Any
    text: str


@dataclass(frozen=True)
class Method:
    """A registered merge method."""

    name: str
    merge: MergeFunction
    """``merge(base [m] | None, sources [n, m], p, at) -> [m]``, in the dtype of its inputs."""
    parameters: type[Any]
    """Frozen dataclass of the global parameters; a source parameter's field is its default."""
    version: int = 1
    """Raised when the same inputs give other bytes than before: it is part of the plan digest."""
    source_parameters: tuple[str, ...] = ()
    """Parameters that each source may set for itself."""
    needs_base: bool = False
    """Whether the method works on task vectors (source - base)."""
    optional_base: bool = False
    """Whether the method works on task vectors where there is a base, and on weights elsewhere."""
    min_sources: int = 1
    max_sources: int | None = None
    order_matters: bool = False
    """Whether swapping sources changes the result beyond rounding."""
    is_random: bool = False
    """Whether the result depends on the recipe's seed."""
    statistics: StatisticsFunction | None = None
    """``statistics(scan, p, at)`` for methods that look at the whole tensor first."""
    check: CheckFunction | None = None
    """Refuses combinations of per-source values before any weight is read (ConfigError)."""
    whole_rows: WholeRowsFunction | None = None
    """``whole_rows(p)``: whether chunks must hold whole rows with these parameters."""
    formula: FormulaFunction | None = None
    """``formula(p, at, n)``: what ``merge`` does with n sources; a ``fused.Formula`` or None."""

    def uses_base(self, present: bool) -> bool:
        """Whether ``merge`` gets the base's chunks, for a recipe with or without a base."""
        return self.needs_base or (self.optional_base and present)

    def chunk_length(self, p: Any, row_length: int, wanted: int) -> int:
        """How many elements to take at a time: about ``wanted``, a multiple of ``BLOCK``.

        With whole rows it is a multiple of ``row_length`` instead, and at least one row.
        """
        if self.whole_rows is None or not self.whole_rows(p):
            return wanted
        return max(wanted // row_length, 1) * row_length

    @property
    def tensor_parameters(self) -> tuple[str, ...]:
        """Parameters that a rule may set for single tensors: all that are real numbers."""
        hints = typing.get_type_hints(self.parameters)
        return tuple(f.name for f in dataclasses.fields(self.parameters) if hints[f.name] is float)

    @property
    def documentation(self) -> str:
        """The first paragraph of the method's file, in one line."""
        return " ".join(self._docstring().strip().split("\n\n")[0].split())

    @property
    def paper(self) -> str:
        """The first URL in the method's file, or an empty text."""
        found = re.search(r"https?://[^\s,)]+", self._docstring())
        return found.group().rstrip(".") if found else ""

    def describe(self) -> list[ParameterDescription]:
        """The parameters with type, default and documentation, in order."""
        texts = attribute_docstrings(self.parameters)
        hints = typing.get_type_hints(self.parameters)
        return [
            ParameterDescription(
                f.name,
                getattr(hints[f.name], "__name__", str(hints[f.name])),
                f.default,
                texts.get(f.name, ""),
            )
            for f in dataclasses.fields(self.parameters)
        ]

    def _docstring(self) -> str:
        return sys.modules[self.merge.__module__].__doc__ or ""


_REGISTRY: dict[str, Method] = {}


def method(
    name: str,
    *,
    version: int = 1,
    source_parameters: tuple[str, ...] = (),
    needs_base: bool = False,
    optional_base: bool = False,
    min_sources: int = 1,
    max_sources: int | None = None,
    order_matters: bool = False,
    is_random: bool = False,
    statistics: StatisticsFunction | None = None,
    check: CheckFunction | None = None,
    whole_rows: WholeRowsFunction | None = None,
    formula: FormulaFunction | None = None,
) -> Callable[[MergeFunction], MergeFunction]:
    """Register a merge function; the annotation of its third argument names its parameters."""

    def register(merge: MergeFunction) -> MergeFunction:
        if name in _REGISTRY:
            other = _REGISTRY[name].merge.__module__
            raise TypeError(f"method {name!r} is defined in {other} and in {merge.__module__}")
        parameters = list(typing.get_type_hints(merge, localns={"Tensor": Any}).values())[2]
        fields = {f.name for f in dataclasses.fields(parameters)}
        missing = set(source_parameters) - fields
        if missing:
            raise TypeError(f"{parameters.__name__} has no default for {sorted(missing)}")
        _REGISTRY[name] = Method(
            name=name,
            merge=merge,
            parameters=parameters,
            version=version,
            source_parameters=source_parameters,
            needs_base=needs_base,
            optional_base=optional_base,
            min_sources=min_sources,
            max_sources=max_sources,
            order_matters=order_matters,
            is_random=is_random,
            statistics=statistics,
            check=check,
            whole_rows=whole_rows,
            formula=formula,
        )
        return merge

    return register


def names() -> list[str]:
    """All method names, sorted."""
    _discover()
    return sorted(_REGISTRY)


def get(name: str) -> Method:
    """The method of this name.

    Raises:
        ConfigError: there is none; says what there is.
    """
    _discover()
    if name not in _REGISTRY:
        close = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"unknown method {name!r}; {hint}allowed: {', '.join(names())}")
    return _REGISTRY[name]


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
