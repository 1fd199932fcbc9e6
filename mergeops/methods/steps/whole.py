"""Merge tensors that are at hand, without files: for notebooks, searches in memory and tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergeops.errors import ConfigError, MergeError
from mergeops.lazy_torch import Tensor, torch
from mergeops.methods.registry import (
    FusedLook,
    Look,
    Method,
    MethodView,
    get,
)
from mergeops.methods.steps.layer_activations import LayerActivations
from mergeops.methods.steps.randomness import random_key
from mergeops.schema import build


def merge_tensors(
    name: str,
    sources: Sequence[Tensor] | Tensor,
    base: Tensor | None = None,
    parameters: Mapping[str, Any] | None = None,
    per_source: Mapping[str, Sequence[float]] | None = None,
    *,
    seed: int = 0,
    digests: Sequence[str] | None = None,
    tensor: str = "",
    has_token_rows: bool = False,
    depth: float | None = None,
    activations: Sequence[LayerActivations] | None = None,
    chunk: int | None = None,
    compute: torch.dtype | None = None,
) -> Tensor:
    """Merge one parameter tensor as the engine would.

    Args:
        name: the method.
        sources: n tensors of one shape, on the device to compute with; or one tensor
            ``[n, *shape]``, of which no copy is made.
        base: the common ancestor, same shape, for methods that need it or can use it.
        parameters: the method's global parameters.
        per_source: source parameter -> n values; the global parameter where missing.
        seed: of random methods.
        digests: what identifies the sources to random methods; their positions by default.
        tensor: the tensor's name, to random methods.
        has_token_rows: whether it is an embedding or a head, to methods that take matrices.
        depth: of its layer, from 0 to 1, to methods that go by it; None outside of the layers.
        activations: what was measured of each source's weight, to methods that ask for it.
        chunk: about how many elements at a time, a multiple of ``methods.BLOCK``; all by default.
            What an operation makes is as large.
        compute: dtype of the arithmetic; that of the sources by default.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ConfigError: unknown method or parameter, or a value out of range.
        MergeError: wrong number of sources, base missing, or shapes that differ.
    """
    method = get(name)
    p = build(method.parameters, parameters or {}, "method.")
    n = len(sources)
    check_source_count(method, n)
    if method.needs_base and base is None:
        raise MergeError(f"{name} needs a base")
    for i, other in enumerate(sources):
        wanted = sources[0].shape if base is None else base.shape
        if other.shape != wanted:
            raise MergeError(f"source {i} has shape {list(other.shape)}, not {list(wanted)}")
    view = MethodView(
        numel=sources[0].numel(),
        per_source=_per_source(method, p, n, per_source or {}),
        keys=tuple(random_key(seed, d, tensor) for d in digests or map(str, range(n))),
        shape=tuple(sources[0].shape),
        has_token_rows=has_token_rows,
        depth=depth,
        activations=activations,
    )
    if method.check is not None:
        method.check(view.per_source, p)
    flats = [source.reshape(-1) for source in sources]
    stacked = sources.reshape(n, -1) if isinstance(sources, torch.Tensor) else None
    flat_base = None
    if base is not None and method.uses_base(True):
        flat_base = base.reshape(-1)

    def take(part: slice) -> tuple[Tensor | None, Tensor]:
        if stacked is not None:
            rows = stacked[:, part]
        else:
            rows = torch.stack([flat[part] for flat in flats])
        dtype = compute or rows.dtype
        return None if flat_base is None else flat_base[part].to(dtype), rows.to(dtype)

    step = method.chunk_length(p, view, chunk or max(view.numel, 1))

    def scan(
        look: Look,
        start: int = 0,
        stop: int | None = None,
        *,
        fused: FusedLook | None = None,
    ) -> Iterator[Tensor]:
        end = view.numel if stop is None else min(stop, view.numel)
        for at in range(start, end, step):
            part = slice(at, min(at + step, end))
            yield look(*take(part), at).cpu()

    if method.statistics is not None and view.numel:
        view = dataclasses.replace(view, statistics=method.statistics(scan, p, view))
    merged = torch.empty_like(flats[0])
    for at in range(0, view.numel, step):
        part = slice(at, at + step)
        merged[part] = method.merge(*take(part), p, dataclasses.replace(view, offset=at))
    return merged.view(sources[0].shape)


def _per_source(
    method: Method, p: Any, n: int, written: Mapping[str, Sequence[float]]
) -> dict[str, tuple[float, ...]]:
    """Each source parameter's n values: as written, or the global parameter."""
    for key, values in written.items():
        if key not in method.source_parameters:
            allowed = ", ".join(method.source_parameters) or "nothing"
            raise ConfigError(f"{method.name} has no source parameter {key!r}; allowed: {allowed}")
        if len(values) != n:
            raise ConfigError(f"{key} has {len(values)} values for {n} sources")
        for value in values:
            dataclasses.replace(p, **{key: float(value)})
    return {
        key: tuple(map(float, written.get(key, (getattr(p, key),) * n)))
        for key in method.source_parameters
    }


def check_source_count(method: Method, n: int) -> None:
    """Refuse too few or too many sources.

    Raises:
        MergeError: says how many the method takes.
    """
    low, high = method.min_sources, method.max_sources
    if low <= n and (high is None or n <= high):
        return
    if high is None:
        allowed = f"at least {low}"
    else:
        allowed = f"exactly {low}" if low == high else f"{low} to {high}"
    plural = "" if (high or low) == 1 else "s"
    raise MergeError(f"{method.name} takes {allowed} source{plural}, not {n}")
