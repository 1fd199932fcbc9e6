"""A base with the experts of a layer in one tensor, under an adapter that has them one by one.

transformers 4 has a module for each expert, and adapters of that time have LoRA on each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mergeops.architectures import ONE_EXPERT, cut_into_experts, read_fit, read_original
from mergeops.checkpoint import Checkpoint


def with_single_experts(
    base: Checkpoint, config: Mapping[str, Any], keys: Iterable[str]
) -> Checkpoint:
    """The base by the names of its original format, where the adapter's are those and its own not.

    Args:
        base: its headers.
        config: its config.json.
        keys: the adapter's tensors.

    Returns:
        The base as it is where nothing is to be cut, or it cannot be.
    """
    is_one_by_one = any(map(ONE_EXPERT.search, keys))
    if not is_one_by_one or any(map(ONE_EXPERT.search, base.tensors)) or base.coded:
        return base
    original = read_original(config)
    if original is None:
        return base
    shapes = {name: stored.shape for name, stored in base.tensors.items()}
    fit, other = read_fit(config, shapes), read_fit(config, original)
    if fit is None or other is None or not fit.is_whole:
        return base
    tensors, cuts = cut_into_experts(fit, base.tensors, other, original)
    names = {parameter: name for name, parameter in other.in_memory().items()}
    in_memory = fit.in_memory()
    renamed = {}
    for name, stored in tensors.items():
        new = name if name in cuts else names.get(in_memory.get(name, ""), name)
        renamed[new] = dataclasses.replace(stored, name=new)
    return dataclasses.replace(base, tensors=renamed)
