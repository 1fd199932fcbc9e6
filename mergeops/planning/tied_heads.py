"""Heads that are written although config.json ties them to the embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergeops.architectures import ModelFit, read_fit, tied_setting
from mergeops.checkpoint import CheckpointReader
from mergeops.planning.architecture import changed
from mergeops.planning.inputs import PlannedInput, config_of
from mergeops.planning.plan import TensorTask
from mergeops.planning.views import View

CHUNK = 1 << 20
"""Elements that are compared at a time."""


def part_heads(
    fit: ModelFit | None,
    tasks: Sequence[TensorTask],
    inputs: Sequence[PlannedInput],
    config: Mapping[str, Any],
    *,
    is_random: bool,
) -> tuple[Mapping[str, Any], list[str]]:
    """Untie in config.json what is written twice and differs: some loaders would drop the head.

    Args:
        fit: the result in the model of its config.json.
        tasks: the tensors of the result.
        inputs: what they are merged from; an adapter is not looked into.
        config: the result's config.json.
        is_random: whether the method draws for each tensor anew.

    Returns:
        Changes of config.json, and warnings.
    """
    by_name = {task.name: task for task in tasks}
    if fit is None:
        return {}, []
    for target, source in fit.tied.items():
        one, other = fit.parts.get(target, ()), fit.parts.get(source, ())
        if len(one) != 1 or len(other) != 1 or one == other:
            continue
        head, embeddings = by_name[one[0]], by_name[other[0]]
        alike = not is_random or head.kind != "merge"
        alike &= (head.shared, head.per_source) == (embeddings.shared, embeddings.per_source)
        names, numel = (head.name, embeddings.name), head.numel
        if alike and all(p.adapter_base or _are_equal(p, names, numel) for p in inputs):
            continue
        differs = f"config.json ties {head.name} to {embeddings.name}, and both are written and "
        shapes = {task.name: task.shape for task in tasks}
        untied = tying(config, tied_setting(config, False), shapes)
        if not untied:
            return {}, [f"{differs}differ: transformers 5 loads both, older versions the first"]
        return untied, [
            f"{differs}differ: the merge says tie_word_embeddings: false, so that both are loaded"
        ]
    return {}, []


def tying(
    config: Mapping[str, Any], change: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Any]:
    """A change of what config.json ties, or none where parameters that the setting ties, too, would
    be missing then: BART's encoder and decoder have no embeddings of their own on disk.
    transformers loads a head that differs from the embeddings all the same."""
    if not change:
        return change
    before, after = read_fit(config, shapes), read_fit(changed(config, change), shapes)
    if before is None or after is None or len(after.missing) <= len(before.missing):
        return change
    return {}


def without_copies(
    inputs: Sequence[PlannedInput], headers: Mapping[str, View]
) -> tuple[dict[str, View], list[str]]:
    """Leave out heads that are written though config.json ties them, where others do not write
    them and they are the embeddings bit by bit: a sharded training gathers both.

    Args:
        inputs: an adapter's is not looked into.
        headers: input -> its tensors, by their names in the result.

    Returns:
        The tensors, and what was left out, in words.
    """
    views, told = dict(headers), []
    for planned in inputs:
        view = views[planned.name]
        others = [other for name, other in headers.items() if name != planned.name]
        if planned.adapter_base is not None or all(view.keys() == o.keys() for o in others):
            continue
        fit = read_fit(config_of(planned), {name: stored.shape for name, stored in view.items()})
        if fit is None:
            continue
        for target, source in fit.tied.items():
            pair = fit.parts.get(target, ()), fit.parts.get(source, ())
            if [len(names) for names in pair] != [1, 1] or pair[0] == pair[1]:
                continue
            head, embeddings = pair[0][0], pair[1][0]
            if all(head in other for other in others) or view[head].shape != view[embeddings].shape:
                continue
            if _are_equal(planned, (head, embeddings), view[head].numel):
                view = {name: stored for name, stored in view.items() if name != head}
                told.append(f"{head} of {planned.name} is left out: it is {embeddings} once more")
        views[planned.name] = view
    return views, told


def with_own_heads(
    inputs: Sequence[PlannedInput], views: Mapping[str, View]
) -> tuple[list[PlannedInput], dict[str, View]]:
    """Heads that a recipe unties have names of their own, and are read from the embeddings: where
    rows are matched by token, some of a head's are another input's head's.

    Args:
        inputs: what is merged.
        views: input -> its tensors, a tied head being the embeddings.
    """
    named: list[PlannedInput] = []
    own: dict[str, View] = {}
    for planned in inputs:
        view = views[planned.name]
        names = {n: planned.renamed.get(t.name, t.name) for n, t in view.items() if t.name != n}
        named.append(dataclasses.replace(planned, renamed={**planned.renamed, **names}))
        own[planned.name] = {n: dataclasses.replace(t, name=n) for n, t in view.items()}
    return named, own


def _are_equal(planned: PlannedInput, pair: tuple[str, str], size: int) -> bool:
    names = [planned.renamed.get(name, name) for name in pair]
    with CheckpointReader.open(Path(planned.path), planned.stamps) as reader:
        first, second = (np.zeros(8 * min(CHUNK, size), np.uint8) for _ in names)
        for start in range(0, size, CHUNK):
            stop = min(start + CHUNK, size)
            one = reader.read(names[0], start, stop, first)
            other = reader.read(names[1], start, stop, second)
            if one != other or not np.array_equal(first, second):
                return False
    return True
