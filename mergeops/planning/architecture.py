"""What tensor names say: which layer, and how deep; and a config.json with changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_LAYER = re.compile(r"^(.*?\.)?(\d+)\.")
_BEFORE_LAYERS = re.compile(r"embed|\bwte\b|\bwpe\b|\bshared\b|\bpatch|\bconv\d?\b")


def is_before_layers(name: str) -> bool:
    """Whether a tensor outside the layers comes before them: embeddings do."""
    return bool(_BEFORE_LAYERS.search(name))


def layer_of(name: str) -> tuple[str, int] | None:
    """The (stack, number) of the layer that a tensor is in; None outside the layers."""
    match = _LAYER.match(name)
    return (match.group(1) or "", int(match.group(2))) if match else None


def layer_depths(names: Iterable[str], after: float = 1.0) -> dict[str, float]:
    """How deep each tensor sits: 0 in or before the first layer, 1 in or after the last.

    A layer is the first number in a name; layers that share what comes before it are one stack.
    Outside the stacks, embeddings are before the layers and the rest (final norm, output head)
    after them, at the depth ``after``. A single layer has depth 1.
    """
    names = list(names)
    places: dict[str, tuple[str, int]] = {}
    last: dict[str, int] = {}
    for name in names:
        place = layer_of(name)
        if place:
            stack, layer = place
            places[name] = (stack, layer)
            last[stack] = max(last.get(stack, 0), layer)
    depths = {}
    for name in names:
        if name in places:
            stack, layer = places[name]
            depths[name] = layer / last[stack] if last[stack] else 1.0
        else:
            depths[name] = 0.0 if is_before_layers(name) else after
    return depths


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with ``changes``; mappings that both have are merged in the same way, but for
    labels of classes, which are one value."""
    result = dict(config)
    for key, value in changes.items():
        ours = result.get(key)
        both = isinstance(ours, Mapping) and isinstance(value, Mapping)
        both = both and key not in ("id2label", "label2id")
        result[key] = changed(ours, value) if both else value  # type: ignore[arg-type]
    return result


def with_dtype(config: Mapping[str, Any], save_dtype: str) -> dict[str, Any]:
    """A config with this dtype wherever it, or a model inside it, names one. Old readers know
    torch_dtype, new ones dtype."""
    return {
        key: with_dtype(value, save_dtype)
        if isinstance(value, Mapping)
        else save_dtype
        if key in ("dtype", "torch_dtype") and isinstance(value, str)
        else value
        for key, value in config.items()
    }
