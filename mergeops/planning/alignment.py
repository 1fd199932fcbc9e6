"""Alignment: the same parameter has the same name in every input.

A wrapper of the training (``_orig_mod.`` of torch.compile, ``module.`` of DDP, the name of a larger
model) puts words into names, and two versions of transformers write a model's names differently.
Where such names lead to the parameters of one model, each to one and to all of them, they are
renamed; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mergeops.architectures import ONE_EXPERT, ModelFit, cut_into_experts, read_fit
from mergeops.checkpoint import StoredTensor, TensorCut
from mergeops.errors import SourceError, about, key_of
from mergeops.planning.inputs import PlannedInput, config_of, read_input
from mergeops.sources import Source

Tensors = Mapping[str, StoredTensor]

WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Words that torch puts into the names of a wrapped module's parameters, wherever it is."""
MOST_WORDS = 3
"""So many words may stand before every name of a model that is part of another."""
INJECTED = ("base_layer", "lora_A", "lora_B", "modules_to_save", "original_module")
"""Words that PEFT puts into the names of the layers that it adapts."""


def read_inputs(
    sources: Iterable[Source],
) -> tuple[list[PlannedInput], dict[str, Tensors], list[str]]:
    """Read the headers of all inputs, and give them the names of the first, or of the first that
    has its experts one by one.

    Returns:
        What the plan keeps of each; input -> its tensors by the name that they have in the result;
        and what was renamed, in words.

    Raises:
        SourceError: as ``read_input``, or names are those of a PEFT model in memory.
    """
    inputs: list[PlannedInput] = []
    headers: dict[str, Tensors] = {}
    names: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    for source in sources:
        with about(key_of(source.name)):
            planned, tensors = read_input(source)
            alike = next((n for n in names.values() if n.keys() == tensors.keys()), None)
            if alike is None:
                alike, said = unwrapped(planned.name, tensors, config_of(planned))
                notes += said
        inputs.append(planned)
        names[planned.name] = alike
        headers[planned.name] = _renamed(tensors, alike)
    first = next((p for p in inputs if any(map(ONE_EXPERT.search, headers[p.name]))), inputs[0])
    for number, planned in enumerate(inputs):
        label, ours = planned.name, headers[first.name]
        seen: Tensors = headers[label]
        cut: dict[str, TensorCut] = {}
        matched: dict[str, str] = {}
        if seen.keys() != ours.keys():
            with about(key_of(label)):
                seen, cut, said = _with_single_experts(first, planned, headers)
                matched, more = _matched(
                    (first.name, ours, config_of(first)), (label, seen, config_of(planned))
                )
                notes += [*said, *more]
        headers[label] = _renamed(seen, {name: matched.get(name, name) for name in seen})
        on_disk = {name: tensor for tensor, name in names[label].items()}
        inputs[number] = dataclasses.replace(
            planned,
            renamed={
                new: on_disk[name]
                for name in seen
                if name not in cut and (new := matched.get(name, name)) != on_disk[name]
            },
            cut={
                matched.get(name, name): dataclasses.replace(place, tensor=on_disk[place.tensor])
                for name, place in cut.items()
            },
        )
    return inputs, headers, notes


def _with_single_experts(
    first: PlannedInput, other: PlannedInput, headers: Mapping[str, Tensors]
) -> tuple[Tensors, dict[str, TensorCut], list[str]]:
    """An input's tensors with its experts one by one, where the first input has them so."""
    ours, theirs = headers[first.name], headers[other.name]
    if not any(map(ONE_EXPERT.search, ours)) or any(map(ONE_EXPERT.search, theirs)):
        return theirs, {}, []
    fits = _fit(ours, config_of(first)), _fit(theirs, config_of(other))
    if fits[0] is None or fits[1] is None:
        return theirs, {}, []
    shapes = {name: stored.shape for name, stored in ours.items()}
    tensors, cut = cut_into_experts(fits[1], theirs, fits[0], shapes)
    if not cut:
        return theirs, {}, []
    place = next(iter(cut.values()))
    return (
        tensors,
        cut,
        [
            f"{other.name} has the experts of a layer in one tensor ({place.tensor}); they are "
            f"merged one by one, as {first.name} has them"
        ],
    )


def unwrapped(
    label: str, tensors: Tensors, config: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """The names without the words of a wrapper.

    Returns:
        Name on disk -> name, and what was left out, in words.

    Raises:
        SourceError: the names are those of a PEFT model in memory.
    """
    same = {name: name for name in tensors}
    fit = _fit(tensors, config)
    if fit is not None and fit.is_whole:
        return same, []
    for names, words in _without_words(tensors):
        if len(set(names.values())) < len(names):
            continue
        if any(set(INJECTED) & set(name.split(".")) for name in names):
            raise SourceError(_injected(label, list(tensors)))
        found = _fit(_renamed(tensors, names), config) if fit is not None else None
        # Of a model that nobody knows only the words that no model has are left out.
        if found.is_whole if found is not None else fit is None and words in WRAPPERS:
            example = next(name for name in names if names[name] != name)
            return names, [
                f"{words} is left out of {label}'s names, e.g. {example} is {names[example]}: "
                "it is a wrapper's, not the model's"
            ]
    return same, []


def _without_words(tensors: Tensors) -> Iterator[tuple[dict[str, str], str]]:
    """Names without the words of torch, and without one to ``MOST_WORDS`` words at the begin."""
    inner: dict[str, str] = {}
    seen: list[str] = []
    for name in tensors:
        words = name.split(".")
        seen += [word for word in words if word in WRAPPERS]
        inner[name] = ".".join(word for word in words if word not in WRAPPERS)
    if seen:
        yield inner, seen[0]
    begin: list[str] = []
    for _ in range(MOST_WORDS):
        firsts = {name.partition(".")[0] for name in inner.values()}
        if len(firsts) != 1 or not all("." in name for name in inner.values()):
            return
        begin += firsts
        inner = {tensor: name.partition(".")[2] for tensor, name in inner.items()}
        yield inner, ".".join(begin)


def _matched(
    first: tuple[str, Tensors, Mapping[str, Any]], other: tuple[str, Tensors, Mapping[str, Any]]
) -> tuple[dict[str, str], list[str]]:
    """Which names of ``other`` are other names of ``first``."""
    (label, reference, config), (theirs, tensors, their_config) = first, other
    lacking = [name for name in tensors if name not in reference]
    if not lacking or all(name in tensors for name in reference):
        return {}, []
    ours, fit = _fit(reference, config), _fit(tensors, their_config)
    names: dict[str, str] = {}
    if ours is not None and fit is not None:
        places = {parameter: name for name, parameter in ours.in_memory().items()}
        in_memory = fit.in_memory()
        names = {name: places.get(in_memory.get(name, ""), name) for name in lacking}
    if all(name == new for name, new in names.items()):
        # Of two classes, of which one has the other inside, or models that nobody knows.
        names = _by_prefix(reference, tensors)
    names = {name: new for name, new in names.items() if new != name and new not in tensors}
    if not names or len(set(names.values())) < len(names):
        return {}, []
    example = next(iter(names))
    return names, [
        f"{len(names)} tensor(s) of {theirs} have another name in {label}, e.g. {example} is "
        f"{names[example]} there; they are merged with those"
    ]


def _by_prefix(reference: Tensors, tensors: Tensors) -> dict[str, str]:
    """The names where all of one input's are those of the other behind one prefix."""
    shortest = min(reference, key=len)
    for name in tensors:
        if name.endswith(f".{shortest}"):
            prefix = name.removesuffix(shortest)
            if {f"{prefix}{name}" for name in reference} <= tensors.keys():
                return {name: name.removeprefix(prefix) for name in tensors}
    shortest = min(tensors, key=len)
    for name in reference:
        if name.endswith(f".{shortest}"):
            prefix = name.removesuffix(shortest)
            if {f"{prefix}{name}" for name in tensors} <= reference.keys():
                return {name: f"{prefix}{name}" for name in tensors}
    return {}


def _fit(tensors: Tensors, config: Mapping[str, Any]) -> ModelFit | None:
    return read_fit(config, {name: stored.shape for name, stored in tensors.items()})


def _renamed(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    return {
        names[name]: stored
        if names[name] == name
        else dataclasses.replace(stored, name=names[name])
        for name, stored in tensors.items()
    }


def _injected(label: str, names: Sequence[str]) -> str:
    example = next(name for name in names if set(INJECTED) & set(name.split(".")))
    inside = any("lora_A" in name for name in names)
    what = "with the adapter's weights in it" if inside else "without the adapter's weights"
    return (
        f"{label} has the names of a PEFT model in memory, e.g. {example}, {what}; name the "
        "directory that PEFT's save_pretrained wrote (adapter_config.json and "
        "adapter_model.safetensors) as the source instead"
    )
