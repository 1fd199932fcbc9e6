"""What a merge method is, what it sees, and the registry that fills itself.

It knows the methods of the files here, and those that installed packages offer (``plugins``).
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
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from mergeops.errors import ConfigError
from mergeops.lazy_torch import Tensor
from mergeops.methods.plugins import distribution, import_module, offers
from mergeops.methods.steps.layer_activations import LayerActivations
from mergeops.schema import attribute_docstrings, with_defaults

LEAST_EXPERT = 8
"""The smaller side of an expert's matrix at least; three dimensions with less are a convolution."""


@dataclass(frozen=True)
class MethodView:
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
    has_token_rows: bool = False
    """Whether each row belongs to a token: embeddings and heads, which no method for matrices
    takes as the matrix of a linear layer."""
    depth: float | None = None
    """Of the layer that the tensor is in: from 0, the first, to 1, the last; None outside of the
    layers."""
    activations: Sequence[LayerActivations] | None = None
    """What was measured of each source's weight, to methods that ask for it; None where nothing was
    of one of them."""

    @property
    def row_length(self) -> int:
        """Size of the last dimension; a tensor without dimensions is one row of one entry."""
        return self.shape[-1] if self.shape else self.numel

    @property
    def is_matrix(self) -> bool:
        """Whether the last two dimensions are those of a linear layer; the first of three counts
        experts. Kernels of a convolution are none."""
        if self.has_token_rows or len(self.shape) not in (2, 3):
            return False
        return min(self.shape[-2:]) >= (2 if len(self.shape) == 2 else LEAST_EXPERT)


Look = Callable[[Any, Tensor, int], Tensor]
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


MergeFunction = Callable[[Any, Tensor, Any, MethodView], Tensor]
StatisticsFunction = Callable[[Scan, Any, MethodView], Any]
CheckFunction = Callable[[Mapping[str, Sequence[float]], Any], None]
WholeRowsFunction = Callable[[Any], bool]
FormulaFunction = Callable[[Any, MethodView, int], Any]


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
    takes_matrices: bool = False
    """Whether chunks must hold whole matrices, where a tensor is one or several of them."""
    formula: FormulaFunction | None = None
    """``formula(p, at, n)``: what ``merge`` does with n sources; a ``fused.Formula`` or None."""
    activations: str = ""
    """What has to be measured of the sources first: ``gram``, ``fisher``, or nothing."""

    def uses_base(self, present: bool) -> bool:
        """Whether ``merge`` gets the base's chunks, for a recipe with or without a base."""
        return self.needs_base or (self.optional_base and present)

    @property
    def cost(self) -> str:
        """What a merge reads and computes: ``element-wise`` is one pass, ``statistics`` looks at
        the whole tensor before, ``matrices`` decomposes each matrix."""
        if self.takes_matrices:
            return "matrices"
        return "element-wise" if self.statistics is None else "statistics"

    def chunk_length(self, p: Any, at: MethodView, wanted: int) -> int:
        """How many elements to take at a time: about ``wanted``, a multiple of ``BLOCK``.

        With whole rows or matrices it is a multiple of their size instead, and at least one.
        """
        if self.takes_matrices and at.is_matrix:
            unit = at.shape[-2] * at.shape[-1]
        elif self.whole_rows is not None and self.whole_rows(p):
            unit = max(at.row_length, 1)
        else:
            return wanted
        return max(wanted // unit, 1) * unit

    @property
    def tensor_parameters(self) -> tuple[str, ...]:
        """Parameters that a rule may set for single tensors: all that are real numbers."""
        hints = typing.get_type_hints(self.parameters)
        return tuple(f.name for f in dataclasses.fields(self.parameters) if hints[f.name] is float)

    @property
    def documentation(self) -> str:
        """The first paragraph of the method's text, in one line."""
        return " ".join(self._docstring().strip().split("\n\n")[0].split())

    @property
    def paper(self) -> str:
        """The first URL in the method's text, or an empty text."""
        url = _URL.search(self._docstring())
        return url.group().rstrip(".") if url else ""

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
        """The docstring of ``merge`` where it names a paper, else that of its file."""
        own = self.merge.__doc__ or ""
        return own if _URL.search(own) else sys.modules[self.merge.__module__].__doc__ or ""


_URL = re.compile(r"https?://[^\s,)]+")
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
    takes_matrices: bool = False,
    formula: FormulaFunction | None = None,
    activations: str = "",
) -> Callable[[MergeFunction], MergeFunction]:
    """Register a merge function; the annotation of its third argument names its parameters."""

    def register(merge: MergeFunction) -> MergeFunction:
        if not _is_own(merge):
            # The methods of mergeops come first, so that none of their names is taken.
            _discover()
        if name in _REGISTRY:
            other = _REGISTRY[name].merge.__module__
            raise TypeError(f"method {name!r} is defined in {other} and in {merge.__module__}")
        parameters = list(typing.get_type_hints(merge, localns={"Tensor": Any}).values())[2]
        names = {f.name for f in dataclasses.fields(parameters)}
        if unknown := set(source_parameters) - names:
            raise TypeError(
                f"method {name!r} names {sorted(unknown)} in source_parameters, and "
                f"{parameters.__name__} has no such field"
            )
        missing = names - with_defaults(parameters)
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
            takes_matrices=takes_matrices,
            formula=formula,
            activations=activations,
        )
        return merge

    return register


def names() -> list[str]:
    """All method names, sorted; those of plug-ins too, which are not imported for it."""
    _discover()
    return sorted({*_REGISTRY, *offers()})


def get(name: str) -> Method:
    """The method of this name.

    Raises:
        ConfigError: there is none, and what there is; or a plug-in offers it that cannot be
            imported, or two packages do.
    """
    _discover()
    problem = _load_plugin(name)
    if problem:
        raise ConfigError(problem)
    if name not in _REGISTRY:
        close = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"unknown method {name!r}; {hint}allowed: {', '.join(names())}")
    return _REGISTRY[name]


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(sys.modules[__package__].__path__):
        importlib.import_module(f"mergeops.methods.{module.name}")


@cache
def _load_plugin(name: str) -> str:
    """Import what offers a method, if a plug-in does; says what is wrong with it, or nothing."""
    entry_points = offers().get(name, ())
    if not entry_points:
        return ""
    packages = [distribution(entry_point) for entry_point in entry_points]
    if name in _REGISTRY and _is_own(_REGISTRY[name].merge):
        packages.insert(0, "mergeops itself")
    if len(packages) > 1:
        return f"method {name!r} is offered by {' and by '.join(packages)}; uninstall all but one"
    before = dict(_REGISTRY)
    error = import_module(entry_points[0])
    if error:
        # A module that fails half-way leaves no method behind.
        _REGISTRY.clear()
        _REGISTRY.update(before)
        return f"method {name!r} of {packages[0]} cannot be loaded: {error}"
    if name not in _REGISTRY:
        return (
            f"{packages[0]} offers a method {name!r}, but its module {entry_points[0].module} "
            "registers none of that name"
        )
    return ""


def _is_own(merge: MergeFunction) -> bool:
    return merge.__module__.startswith("mergeops.methods.")
