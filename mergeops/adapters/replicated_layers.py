"""layer_replication: an adapter on a base whose layers are repeated before it is put on them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mergeops.checkpoint import Checkpoint
from mergeops.errors import SourceError

MOST_LAYERS = 10_000

_LAYER = re.compile(r"^((?:model\.|transformer\.)?(?:layers|h)\.)(\d+)\.(.+)$")


def with_replicated_layers(
    shown: str, ranges: Any, base: Checkpoint, config: Mapping[str, Any]
) -> tuple[Checkpoint, dict[str, Any]]:
    """The base with its layers repeated, and what that changes in its config.json.

    Args:
        shown: what messages call the adapter.
        ranges: the config's ``layer_replication``: [from, to) of the base's layers, in order.
        base: the base's headers.
        config: its config.json.

    Raises:
        SourceError: the ranges do not fit the base, or it has no single stack of layers.
    """
    layers: dict[int, dict[str, str]] = {}
    prefixes = set()
    for name in base.tensors:
        if match := _LAYER.match(name):
            prefixes.add(match[1])
            layers.setdefault(int(match[2]), {})[match[3]] = name
    where = f"{shown}: layer_replication is {str(ranges)[:80]}"
    if len(prefixes) != 1:
        raise SourceError(
            f"{where}, but {base.path} has {len(prefixes)} stacks of layers by their names; leave "
            "this source out"
        )
    order = _order(where, ranges, len(layers))
    (prefix,) = prefixes
    tensors = {name: stored for name, stored in base.tensors.items() if not _LAYER.match(name)}
    for number, layer in enumerate(order):
        for ending, name in layers[layer].items():
            new = f"{prefix}{number}.{ending}"
            tensors[new] = dataclasses.replace(base.tensors[name], name=new)
    changes: dict[str, Any] = {
        key: [value[layer] for layer in order]
        for key, value in config.items()
        if isinstance(value, list) and len(value) == len(layers)
    }
    depth = "n_layer" if "n_layer" in config else "num_hidden_layers"
    return dataclasses.replace(base, tensors=tensors), {**changes, depth: len(order)}


def _order(where: str, ranges: Any, count: int) -> list[int]:
    order: list[int] = []
    pairs: list[Any] = ranges if isinstance(ranges, list) else [None]
    for pair in pairs:
        is_range = isinstance(pair, list) and len(pair) == 2 and all(type(i) is int for i in pair)
        if not is_range or not 0 <= pair[0] < pair[1] <= count:
            raise SourceError(f"{where}; it takes a list of [from, to] from 0 to {count}")
        order += range(*pair)
    if len(order) > MOST_LAYERS:
        raise SourceError(f"{where}; that are {len(order)} layers, and {MOST_LAYERS} are allowed")
    return order
