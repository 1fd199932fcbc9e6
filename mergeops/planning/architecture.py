"""What tensor names and config.json say: the depth of layers, and which models fit each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mergeops.errors import MergeError, key_of

# The settings that change what the weights mean without changing their shapes.
MEANING = (
    "model_type",
    "architectures",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "tie_word_embeddings",
)
ROPE = ("rope_parameters", "rope_theta", "rope_scaling")

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


def check_same_architecture(
    configs: Mapping[str, Mapping[str, Any]], settled: Iterable[str] = (), *, mixed: bool = False
) -> list[str]:
    """Compare every config.json with the first.

    Args:
        configs: name of the input -> content.
        settled: settings that may differ, since the recipe says what the result has.
        mixed: whether all may differ.

    Returns:
        Warnings: differences that a merge can live with.

    Raises:
        MergeError: two inputs are models of different kinds; names the setting and both values.
    """
    warnings = []
    (first, reference), *others = configs.items()
    for name, config in others:
        for key in (key for key in MEANING if key not in settled):
            ours, theirs = reference.get(key), config.get(key)
            if ours is None or theirs is None or ours == theirs:
                continue
            differs = f"{key} is {_short(ours)} in {first} and {_short(theirs)} in {name}"
            if mixed:
                warnings.append(f"{differs}; the merge takes that of {first}")
                continue
            raise MergeError(
                f"{first} and {name} have different architectures: {differs}; choose fine-tunes of "
                "one model, or set mixed_architectures=allow if their weights mean the same",
                at=key_of(name),
            )
        for key in ROPE:
            if reference.get(key) != config.get(key):
                warnings.append(
                    f"{key} is {reference.get(key)!r} in {first} and {config.get(key)!r} in "
                    f"{name}; the merge takes that of {first}"
                )
    return warnings


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return str(value)


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with ``changes``; mappings that both have are merged in the same way."""
    result = dict(config)
    for key, value in changes.items():
        ours = result.get(key)
        both = isinstance(ours, Mapping) and isinstance(value, Mapping)
        result[key] = changed(ours, value) if both else value  # type: ignore[arg-type]
    return result
